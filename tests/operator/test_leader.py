"""One leads at a time, and one that slept changes nothing when it wakes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import select, update

from api.domain.job import Phase
from api.operator.leader import Leader
from api.store import operations, operations_load
from api.store.database import Database, utcnow
from api.store.migrate import migrate
from api.store.operations_leader import Lease, Led, NotLeader, acquire, led, release, renew, require
from api.store.tables import JobRow, LeaderRow
from tests.operator.conftest import Plane


async def held(database: Database, lease: Lease) -> bool:
    try:
        async with database.transaction() as session:
            await require(session, lease)
    except NotLeader:
        return False
    return True


async def run_out(database: Database) -> None:
    """The lease's time is over."""
    async with database.transaction() as session:
        await session.execute(update(LeaderRow).values(expires_at=0.0))


async def test_of_many_that_ask_at_once_one_leads(database: Database) -> None:
    leases = await asyncio.gather(*(acquire(database, f"o{n}", 60.0) for n in range(8)))
    [lease] = [lease for lease in leases if lease is not None]
    assert lease.epoch == 1
    assert await held(database, lease)


async def test_a_takeover_makes_a_new_epoch_and_ends_the_old_one(database: Database) -> None:
    first = await acquire(database, "first", 60.0)
    assert first is not None
    assert await acquire(database, "second", 60.0) is None
    await run_out(database)
    assert not await held(database, first)
    second = await acquire(database, "second", 60.0)
    assert second == Lease("second", 2)
    for call in (renew(database, first, 60.0),):
        with pytest.raises(NotLeader):
            await call
    await release(database, first)
    assert await held(database, second)


async def test_a_lease_that_ran_out_is_not_renewed_even_if_nobody_took_it(database: Database) -> None:
    lease = await acquire(database, "first", 60.0)
    assert lease is not None
    await run_out(database)
    with pytest.raises(NotLeader):
        await renew(database, lease, 60.0)


async def test_what_troubles_the_leader_is_told_and_costs_it_no_lease_whatever_the_words(database: Database) -> None:
    lease = await acquire(database, "first", 60.0)
    assert lease is not None
    for words in ("no route to host", "a page\x00 of a proxy \ud800", "<html>" * 10**6):
        await renew(database, lease, 60.0, words)
        told = await database.look(led)
        assert (told.now, told.trouble is not None) == (True, True)
        assert str(told.trouble)[:5] == words[:5]
        assert len(str(told.trouble)) <= 2000
    await renew(database, lease, 60.0)
    assert (await database.look(led)).trouble is None
    await release(database, lease, "no route to host")
    assert await database.look(led) == Led(now=False, trouble="no route to host")


async def test_a_released_lease_is_free_at_once(database: Database) -> None:
    lease = await acquire(database, "first", 60.0)
    assert lease is not None
    await release(database, lease)
    assert await acquire(database, "second", 60.0) == Lease("second", 2)


async def test_whoever_is_certainly_alone_takes_a_dead_ones_lease(database: Database) -> None:
    await acquire(database, "killed", 60.0)
    assert await acquire(database, "restarted", 60.0, alone=True) == Lease("restarted", 2)


async def test_a_lease_is_kept_for_longer_than_it_runs(database: Database) -> None:
    leader = Leader(database, seconds=0.6)
    lease = await leader.acquire()
    assert lease is not None
    keeping = asyncio.create_task(leader.keep(lease))
    await asyncio.sleep(1.0)
    assert await held(database, lease)
    assert leader.left > 0
    await run_out(database)
    await asyncio.wait_for(keeping, 10)


@pytest.fixture
async def two(postgres: Callable[[], str]) -> AsyncIterator[tuple[Database, Database]]:
    """Two control planes' connections to one PostgreSQL."""
    url = postgres()
    databases = Database(url), Database(url)
    await migrate(databases[0])
    yield databases
    for database in databases:
        await database.dispose()


async def test_nobody_takes_over_while_a_leader_writes(two: tuple[Database, Database]) -> None:
    first = await acquire(two[0], "first", 60.0)
    assert first is not None
    async with two[0].transaction() as session:
        await require(session, first)
        taking = asyncio.create_task(acquire(two[1], "second", 60.0, alone=True))
        await asyncio.sleep(0.3)
        assert not taking.done(), "the row is held until the transaction is over"
    assert await taking == Lease("second", 2)


async def test_of_two_operators_one_works_and_the_other_takes_over(
    two: tuple[Database, Database], tmp_path: Path, data: Path
) -> None:
    first, second = Plane(two[0], data, lease=1.0), Plane(two[1], data, lease=1.0)
    async with first:
        job = await first.post(metadata={"seconds": "600"})
        await first.runs(job)
        async with second:
            await asyncio.sleep(0.3)
            async with two[0].reading() as session:
                assert await session.scalar(select(LeaderRow.holder)) == first.leader.holder
            await first.__aexit__()
            await second.wish(job, desired="cancel")
            await second.reaches(job, Phase.CANCELLED)
            assert len(await second.attempts(job)) == 1
        await first.__aenter__()


async def test_a_leader_that_slept_changes_nothing_when_it_wakes(two: tuple[Database, Database], data: Path) -> None:
    asleep, awake = two
    plane = Plane(awake, data)
    old = await acquire(asleep, "asleep", 60.0)
    assert old is not None
    job_id = await plane.post(metadata={"seconds": "600"})
    snapshot = await asleep.look(partial(operations_load.one, job_id=job_id))
    assert snapshot is not None
    await run_out(awake)
    async with plane:
        await plane.runs(job_id)
        # It wakes with what it knew, and with the lease that it believes in.
        for call in (
            lambda s: operations.record_uid(s, old, snapshot, "a uid"),
            lambda s: operations.mark_cleaned(s, old, snapshot),
        ):
            with pytest.raises(NotLeader):
                async with asleep.transaction() as session:
                    await call(session)
        with pytest.raises(NotLeader):
            await asleep.put(lambda connection: operations.begin_attempts(connection, old, [snapshot], utcnow()))
        with pytest.raises(NotLeader):
            await asleep.put(lambda connection: operations.move(connection, old, snapshot, Phase.CANCELLED, utcnow()))
        row = await plane.job(job_id)
        assert (row.phase, row.attempt) == (Phase.RUNNING, 1)


async def test_a_decision_on_what_has_changed_since_is_not_written(database: Database, data: Path) -> None:
    plane = Plane(database, data)
    lease = await acquire(database, "me", 60.0)
    assert lease is not None
    job_id = await plane.post()
    then = await database.look(partial(operations_load.one, job_id=job_id))
    assert then is not None
    await plane.wish(job_id, desired="pause")
    assert not await database.put(lambda connection: operations.begin_attempts(connection, lease, [then], utcnow()))
    async with database.reading() as session:
        row = await session.get(JobRow, job_id)
    assert row is not None
    assert (row.phase, row.attempt, row.event_count) == ("queued", 0, 0)
    await plane.wakeups.close()
