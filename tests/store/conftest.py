"""A control plane on PostgreSQL, and somebody else who is at the same database."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from api.settings import Settings, load
from tests.api.conftest import Plane, plane_on


async def until(condition: Callable[[], Awaitable[Any]], seconds: float = 30.0) -> Any:
    """The first true answer of `condition`; fails the test after `seconds`, which is a limit for hangs."""
    deadline = time.monotonic() + seconds
    while not (answer := await condition()):
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.02)
    return answer


class Other:
    """Another client of the database, who may do all."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def does(self, *statements: str) -> None:
        """Each in turn."""
        for statement in statements:
            await self.connection.execute(statement)

    async def value(self, query: str, *values: object) -> Any:
        """The first column of the first row."""
        return await self.connection.fetchval(query, *values)

    async def keeps_waiting(self, count: int = 1) -> None:
        """Returns once so many others wait for a lock on this database."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
            "AND pid <> pg_backend_pid()"
        )

        async def waiting() -> bool:
            # What the statistics show is kept to a transaction's end.
            await self.connection.execute("SELECT pg_stat_clear_snapshot()")
            return bool(await self.value(query) == count)

        await until(waiting)

    async def ends(self) -> int:
        """Ends all other connections to this database; gives how many there were."""
        ended: int = await self.value(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return ended

    async def only_reads(self, on: bool) -> None:
        """For connections that are made from now on."""
        name = await self.value("SELECT current_database()")
        await self.does(f"ALTER DATABASE {name} SET default_transaction_read_only = {'on' if on else 'off'}")


@asynccontextmanager
async def other_on(url: str) -> AsyncIterator[Other]:
    """Another client of the database at `url`."""
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(dsn, timeout=30, command_timeout=60)
    try:
        # Not the one whom PostgreSQL would choose in a deadlock.
        await connection.execute("SET deadlock_timeout = '1min'; SET default_transaction_read_only = off")
        yield Other(connection)
    finally:
        await connection.close(timeout=5)


@pytest.fixture
def url(postgres: Callable[[], str]) -> str:
    """An empty database."""
    return postgres()


@pytest.fixture
def settings(tmp_path: Path, url: str) -> Settings:
    """Short limits, so that tests are quick."""
    return load(
        data=tmp_path / "data", database_url=url, port=0, shutdown_grace=2.0, database_pool=4, lock_timeout=20.0
    )


@pytest.fixture
async def plane(settings: Settings) -> AsyncIterator[Plane]:
    """A running control plane without an operator."""
    async with plane_on(settings) as plane:
        yield plane


@pytest.fixture
async def other(url: str, plane: Plane) -> AsyncIterator[Other]:
    """Another client of the control plane's database."""
    async with other_on(url) as made:
        yield made
