"""SQLite as the control plane uses it: one writer at a time, each transaction durable, readers that wait for nobody."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import TimeoutError as TookTooLong
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

Begin = Literal["BEGIN", "BEGIN IMMEDIATE"]

# FULL, not NORMAL: in WAL mode NORMAL syncs at checkpoints only, and a loss of power would take answered reports along.
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=20000")
# Seconds that a writer waits for its turn.
_PATIENCE = 30.0


class Turns:
    """The queue of this process's writers: fairer and quicker than SQLite's own polling for its lock."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def mine(self) -> AsyncIterator[None]:
        """Waits for one's turn, in the order of asking, and holds it. Raises SQLAlchemy's TimeoutError."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._lock.acquire()
        except TimeoutError:
            raise TookTooLong(f"other writers held the database for {_PATIENCE:g} s") from None
        try:
            yield
        finally:
            self._lock.release()


def engine(url: URL, begin: Begin, connections: int) -> AsyncEngine:
    """For the event loop: each statement is a journey to a thread and back."""
    made = create_async_engine(url, pool_size=connections, max_overflow=0, pool_timeout=_PATIENCE)
    _configure(made.sync_engine, begin)
    return made


def thread_engine(url: URL, begin: Begin, connections: int) -> Engine:
    """For a thread that does a whole transaction at once."""
    made = create_engine(url.set(drivername="sqlite"), pool_size=connections, max_overflow=0, pool_timeout=_PATIENCE)
    _configure(made, begin)
    return made


def _configure(engine: Engine, begin: Begin) -> None:
    def connect(connection: Any, record: Any) -> None:
        # The driver would begin by itself, too late, and as a reader: say BEGIN ourselves.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin_transaction)
