"""The database: SQLite in the data folder, or PostgreSQL. One request, one transaction."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TypeVar

from sqlalchemy import text
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import DataError, DBAPIError, StatementError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from api.store import again, postgres, sqlite
from api.store.group import Group
from api.store.postgres import Limits
from api.store.trouble import Trouble, Unavailable, state

Result = TypeVar("Result")

# There is one project until there are API keys; its row is made by the first migration.
DEFAULT_PROJECT = "default"
# Threads that read on SQLite: Python runs one at a time, so more would not be quicker.
_LOOKERS = 2


def utcnow() -> datetime:
    """The time now, aware, in UTC."""
    return datetime.now(UTC)


def never_stored(error: Exception) -> bool:
    """Whether it is the values' fault, and not that of a database which is away, full or busy: trying again is vain."""
    if not isinstance(error, DBAPIError):
        # Raised before the database was asked: by the driver, or by what makes a value ready for it.
        return isinstance(error, StatementError | OverflowError)
    # Class 22 is "data exception": PostgreSQL's answer to a NUL in a text, for one.
    return isinstance(error, DataError) or state(error).startswith("22")


class Database:
    """Sessions on one database. Close it with `dispose`.

    SQLite has one writer at a time: all writers of this process take turns; readers have connections of their own and
    wait for nobody (WAL). What is asked for a hundred times a second is done by `look` and `put`: whole, in one thread.

    On PostgreSQL who reads may have connections apart, and then waits for none behind those who write. What the
    database undid is done again: by `look` and `put` here, and by a request's route for the rest.
    `limits` are for PostgreSQL.
    """

    def __init__(self, url: str | URL, limits: Limits | None = None) -> None:
        self.url = make_url(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        if self.sqlite:
            self._turns = sqlite.Turns()
            self._writer = sqlite.engine(self.url, "BEGIN IMMEDIATE", connections=1)
            self._reader = sqlite.engine(self.url, "BEGIN", connections=8)
            self._group = Group(sqlite.thread_engine(self.url, "BEGIN IMMEDIATE", connections=1), self._turns)
            self._looker = sqlite.thread_engine(self.url, "BEGIN", connections=_LOOKERS)
            self._lookers = ThreadPoolExecutor(_LOOKERS, "sqlite-look")
        else:
            limits, self._moves = limits or Limits(), postgres.Moves()
            if limits.apart:
                readers, writers = limits.shared()
                self._reader = postgres.engine(self.url, readers, self._moves)
                self._writer = postgres.engine(self.url, writers, self._moves)
            else:
                self._writer = self._reader = postgres.engine(self.url, limits, self._moves)
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
        async with self._turns.mine() if self.sqlite else contextlib.nullcontext(), self._write() as session:
            yield session
            await session.flush()
            with again.committing():
                await session.commit()
            again.only_once()

    @asynccontextmanager
    async def reading(self, *, one_state: bool = False) -> AsyncIterator[AsyncSession]:
        """A session which writes nothing. With `one_state` all that it asks is of one moment, on PostgreSQL too."""
        async with self._read() as session:
            if one_state and not self.sqlite:
                await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    async def put(self, work: Callable[[Connection], Result]) -> Result:
        """What `work` gives, which writes, once that is committed; whatever it raises rolls back what it did.

        On SQLite it shares its transaction with others that arrive at the same time. On PostgreSQL it may be called
        again, where the database undid what it did.
        """
        if self.sqlite:
            return await self._group.write(work)

        async def whole() -> Result:
            async with self._writer.connect() as connection:
                result = await connection.run_sync(work)
                with again.committing():
                    await connection.commit()
                return result

        return await again.repeated(whole)

    async def look(self, work: Callable[[Connection], Result]) -> Result:
        """What `work` gives, which only reads, on one state of the database."""
        if self.sqlite:
            return await asyncio.get_running_loop().run_in_executor(self._lookers, self._look, work)

        async def whole() -> Result:
            async with self._reader.connect() as connection:
                return await connection.run_sync(work)

        return await again.repeated(whole)

    async def ping(self) -> None:
        """Raises unless the database answers, and would take changes."""
        async with (self._reader if self.sqlite else self._writer).connect() as connection:
            if self.sqlite:
                await connection.execute(text("SELECT 1"))
            elif await connection.scalar(text("SELECT current_setting('transaction_read_only')")) == "on":
                # It may have been so when this connection was made, and not be so any more.
                self._moves.note()
                await connection.invalidate()
                raise Unavailable(Trouble.READ_ONLY)

    async def dispose(self) -> None:
        """Closes all connections."""
        if self.sqlite:
            await self._group.close()
            self._lookers.shutdown()
            self._looker.dispose()
        await self._writer.dispose()
        if self._reader is not self._writer:
            await self._reader.dispose()

    def _look(self, work: Callable[[Connection], Result]) -> Result:
        with self._looker.connect() as connection:
            return work(connection)
