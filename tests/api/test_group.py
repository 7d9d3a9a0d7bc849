"""Writes that arrive together on SQLite: one commit, and each of them as alone."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DatabaseError, IntegrityError

from api.store.database import Database, utcnow
from api.store.migrate import migrate
from api.store.tables import Project

pytestmark = pytest.mark.quick


class Refused(Exception):
    """What a write may say."""


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(f"sqlite+aiosqlite:///{tmp_path / 'rlhf.db'}")
    await migrate(made)
    yield made
    await made.dispose()


def add(name: str, then: Exception | None = None) -> Callable[[Connection], str]:
    """A write of one row, which may raise after it."""

    def work(connection: Connection) -> str:
        connection.execute(Project.__table__.insert().values(id=name, name=name, created_at=utcnow()))  # type: ignore[attr-defined]
        if then is not None:
            raise then
        return name

    return work


async def names(database: Database) -> list[str]:
    """The rows that `add` has made, as another connection sees them."""
    async with database.reading() as session:
        found = await session.scalars(select(Project.name).where(Project.name != "default").order_by(Project.name))
        return list(found)


async def together(database: Database, *works: Callable[[Connection], str]) -> list[str | BaseException]:
    """Asks for all writes while another transaction holds the database, so that they go as one group."""
    async with database.transaction() as session:
        await session.execute(text("SELECT 1"))
        asked = [asyncio.ensure_future(database.put(work)) for work in works]
        for _ in range(3):
            await asyncio.sleep(0)
        assert not any(task.done() for task in asked)
    return await asyncio.gather(*asked, return_exceptions=True)


async def test_what_is_answered_is_committed(database: Database) -> None:
    assert await database.put(add("a")) == "a"
    assert await names(database) == ["a"]


async def test_a_write_that_raises_leaves_nothing_and_spoils_no_other_of_its_group(database: Database) -> None:
    refused = Refused("no")
    answers = await together(database, add("a"), add("b", then=refused), add("a"), add("c"))
    assert answers[:2] == ["a", refused] and answers[3] == "c"
    assert isinstance(answers[2], IntegrityError)
    assert await names(database) == ["a", "c"]


async def test_a_group_whose_transaction_is_lost_answers_nobody_that_it_was_written(database: Database) -> None:
    def lose(connection: Connection) -> str:
        # What SQLite does by itself when the disk is full.
        connection.connection.driver_connection.execute("ROLLBACK")  # type: ignore[union-attr]
        raise Refused("the whole was rolled back")

    answers = await together(database, add("a"), lose, add("b"))
    assert all(isinstance(answer, Exception) for answer in answers)
    assert await names(database) == []
    assert await database.put(add("c")) == "c"


async def test_a_commit_that_fails_is_everybody_s_failure(database: Database) -> None:
    def defer(connection: Connection) -> str:
        # The foreign key is looked at only when all is committed.
        connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        connection.exec_driver_sql(
            "INSERT INTO idempotency_keys VALUES ('nobody', 'k', 'x', 'y', '2026-01-01 00:00:00.000000')"
        )
        return "deferred"

    answers = await together(database, add("a"), defer)
    assert all(isinstance(answer, DatabaseError) for answer in answers)
    assert await names(database) == []
    assert await database.put(add("c")) == "c"


async def test_more_writes_than_a_group_holds_are_all_done_in_turn_with_other_transactions(database: Database) -> None:
    async def alone(name: str) -> None:
        async with database.transaction() as session:
            session.add(Project(id=name, name=name, created_at=utcnow()))

    await asyncio.gather(*(database.put(add(f"g{n:03}")) for n in range(100)), *(alone(f"t{n:03}") for n in range(20)))
    assert len(await names(database)) == 120


async def test_a_caller_that_is_gone_keeps_no_other_waiting(database: Database) -> None:
    async with database.transaction():
        gone = asyncio.ensure_future(database.put(add("a")))
        other = asyncio.ensure_future(database.put(add("b")))
        await asyncio.sleep(0)
        gone.cancel()
    assert await other == "b"
    assert gone.cancelled()


async def test_writes_that_were_asked_for_are_done_before_the_database_closes(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'other.db'}"
    first = Database(url)
    await migrate(first)
    asked = [asyncio.ensure_future(first.put(add(f"p{n}"))) for n in range(40)]
    await asyncio.sleep(0)
    await first.dispose()
    assert len(await asyncio.gather(*asked)) == 40
    second = Database(url)
    try:
        assert await second.look(lambda connection: connection.scalar(select(func.count(Project.id)))) == 41
    finally:
        await second.dispose()
