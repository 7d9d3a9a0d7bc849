"""The database: SQLite in the data folder, or PostgreSQL. One request, one transaction."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

# There is one project until there are API keys; its row is made by the first migration.
DEFAULT_PROJECT = "default"


def utcnow() -> datetime:
    """The time now, aware, in UTC."""
    return datetime.now(UTC)


class Database:
    """Sessions on one database. Close it with `dispose`.

    SQLite has one writer at a time: all writers of this process queue for one connection, in turn, which is fairer and
    quicker than SQLite's own polling; readers have connections of their own and wait for nobody (WAL).
    """

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        if self.sqlite:
            self._writer = _sqlite(self.url.render_as_string(False), begin="BEGIN IMMEDIATE", connections=1)
            self._reader = _sqlite(self.url.render_as_string(False), begin="BEGIN", connections=8)
        else:
            self._writer = self._reader = create_async_engine(
                self.url, pool_size=10, max_overflow=10, pool_pre_ping=True
            )
        self._write = async_sessionmaker(self._writer, expire_on_commit=False)
        self._read = async_sessionmaker(self._reader, expire_on_commit=False)

    @property
    def engine(self) -> AsyncEngine:
        """The engine that writes."""
        return self._writer

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A session that may write; commits at the end, rolls back on any exception.

        Do not open one inside another, and wait for nothing but the database in it.
        """
        async with self._write.begin() as session:
            yield session

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A session on one state of the database, which writes nothing."""
        async with self._read() as session:
            yield session

    async def now(self) -> datetime:
        """The database's own clock: what leases are compared by."""
        if self.sqlite:
            return utcnow()
        async with self.reading() as session:
            now: datetime = (await session.execute(text("SELECT clock_timestamp()"))).scalar_one()
            return now

    async def ping(self) -> None:
        """Raises unless the database answers."""
        async with self.reading() as session:
            await session.execute(text("SELECT 1"))

    async def dispose(self) -> None:
        """Closes all connections."""
        await self._writer.dispose()
        if self._reader is not self._writer:
            await self._reader.dispose()


def _sqlite(url: str, *, begin: str, connections: int) -> AsyncEngine:
    engine = create_async_engine(url, pool_size=connections, max_overflow=0, pool_timeout=30)

    def connect(connection: Any, record: Any) -> None:
        # The driver would begin by itself, too late, and as a reader: say BEGIN ourselves.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=20000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine.sync_engine, "connect", connect)
    event.listen(engine.sync_engine, "begin", begin_transaction)
    return engine
