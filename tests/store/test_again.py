"""What PostgreSQL undoes is done again, whole; what it may have done is not."""

import asyncio
import logging
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from api.store import again
from api.store.database import Database, utcnow
from api.store.tables import JobRow, Project
from tests.api.conftest import REHEARSAL, Plane, points
from tests.store.conftest import Other

DONE_AGAIN = "the database undid a transaction, which is done again"
# A commit that waits for as long as somebody else holds the lock of this number.
SLOW_COMMIT = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON jobs DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION slow();
"""


async def changes(other: Other, action: str) -> int:
    """How often the audit says that this was done."""
    count: int = await other.value("SELECT count(*) FROM audit WHERE action = $1", action)
    return count


async def test_a_request_that_loses_a_deadlock_is_done_again_and_once(
    plane: Plane, other: Other, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    steps = {"one": REHEARSAL, "two": REHEARSAL}
    made = (await plane.http.post("/v1/pipelines", json={"name": "p", "steps": steps})).json()
    first, second = sorted(step["id"] for step in made["steps"])
    await other.does("BEGIN", f"SELECT FROM jobs WHERE id = '{second}' FOR UPDATE")
    cancelling = asyncio.ensure_future(plane.http.post(f"/v1/pipelines/{made['id']}/cancel"))
    await other.keeps_waiting()
    # Each has now what the other wants.
    await other.does(f"SELECT FROM jobs WHERE id = '{first}' FOR UPDATE", "COMMIT")
    answer = await cancelling
    assert answer.status_code == 200, answer.text
    assert f"{DONE_AGAIN}: deadlock detected" in caplog.text
    assert await other.value("SELECT count(*) FROM jobs WHERE desired = 'cancel'") == 2
    assert await changes(other, "pipeline.cancel") == 1


async def test_a_request_whose_data_changed_under_it_is_done_again_with_its_body(
    plane: Plane, other: Other, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    job = (await plane.submit())["id"]
    name = await other.value("SELECT current_database()")
    await other.does(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    await other.ends()
    await other.does("BEGIN", f"UPDATE jobs SET message = 'other' WHERE id = '{job}'")
    changing = asyncio.ensure_future(plane.http.patch(f"/v1/jobs/{job}", json={"name": "new"}))
    await other.keeps_waiting()
    await other.does("COMMIT")
    answer = await changing
    assert (answer.status_code, answer.json()["name"]) == (200, "new")
    assert f"{DONE_AGAIN}: could not serialize access" in caplog.text
    assert await changes(other, "job.change") == 1


async def test_a_report_that_loses_a_deadlock_is_taken_in_once(
    plane: Plane, other: Other, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    worker = await plane.start((await plane.submit())["id"])
    assert (await worker.report()).status_code == 200
    # Both rows are locked by the report: the attempt's here, so that it waits with the job's in hand.
    await other.does("BEGIN", "SELECT FROM attempts FOR UPDATE")
    reporting = asyncio.ensure_future(worker.report(metrics=points(1, 2)))
    await other.keeps_waiting()
    await other.does("SELECT FROM jobs FOR UPDATE", "COMMIT")
    assert (await reporting).status_code == 200
    assert f"{DONE_AGAIN}: deadlock detected" in caplog.text
    assert await other.value("SELECT count(*) FROM metrics") == 2


async def test_a_deadlock_that_comes_back_every_time_is_told_after_a_few_tries(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(again, "_FIRST", 0.001)
    calls = 0

    def deadlock(connection: Connection) -> None:
        nonlocal calls
        calls += 1
        connection.execute(text("DO $$ BEGIN RAISE EXCEPTION 'made up' USING ERRCODE = '40P01'; END $$"))

    async def request() -> None:
        await plane.control.database.put(deadlock)

    with pytest.raises(DBAPIError, match="made up"):
        await again.request(request)
    assert calls == 5, "not five times five, though the request would have been done again"


@pytest.mark.parametrize("wrong", ["no such thing", "a second of a kind", "the program's"])
async def test_a_mistake_is_made_once(plane: Plane, wrong: str) -> None:
    calls = 0

    def work(connection: Connection) -> None:
        nonlocal calls
        calls += 1
        if wrong == "no such thing":
            connection.execute(text("SELECT nothing FROM jobs"))
        elif wrong == "a second of a kind":
            connection.execute(Project.__table__.insert().values(id="default", name="x", created_at=utcnow()))  # type: ignore[attr-defined]
        raise KeyError(wrong)

    error: type[Exception] = {"no such thing": DBAPIError, "a second of a kind": IntegrityError}.get(wrong, KeyError)
    with pytest.raises(error):
        await plane.control.database.put(work)
    assert calls == 1


async def test_connections_that_were_cut_between_requests_are_noticed_by_nobody(plane: Plane, other: Other) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    await asyncio.gather(*(plane.get(job) for _ in range(20)))
    for _ in range(3):
        assert await other.ends() >= 2
        answers = await asyncio.gather(
            plane.http.get("/v1/jobs"),
            plane.http.post("/v1/jobs", json=REHEARSAL),
            plane.http.patch(f"/v1/jobs/{job}", json={"priority": 1}),
            plane.http.get("/readyz"),
            worker.report(),
        )
        assert [answer.status_code for answer in answers] == [200, 201, 200, 200, 200]


async def test_connections_that_are_cut_within_requests_are_noticed_by_nobody(plane: Plane, other: Other) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    await other.does("BEGIN", "LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
    requests: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(plane.http.get("/v1/jobs")),
        asyncio.ensure_future(plane.http.patch(f"/v1/jobs/{job}", json={"name": "new"})),
        asyncio.ensure_future(worker.report()),
    ]
    await other.keeps_waiting(len(requests))
    await other.ends()
    await other.does("COMMIT")
    assert [answer.status_code for answer in await asyncio.gather(*requests)] == [200, 200, 200]
    assert (await plane.get(job))["name"] == "new"
    assert await changes(other, "job.change") == 1


async def test_a_connection_that_is_lost_while_it_commits_is_told_and_repeated_by_nobody_but_the_caller(
    plane: Plane, other: Other
) -> None:
    await other.does(SLOW_COMMIT, "SELECT pg_advisory_lock(7)")
    headers = {"Idempotency-Key": "k"}
    posting = asyncio.ensure_future(plane.http.post("/v1/jobs", json=REHEARSAL, headers=headers))
    await other.keeps_waiting()
    await other.ends()
    answer = await posting
    assert answer.status_code == 503, answer.text
    assert "may or may not have done so" in answer.json()["detail"]
    await other.does("SELECT pg_advisory_unlock(7)")
    assert await other.value("SELECT count(*) FROM jobs") == 0, "nothing was done again by itself"
    assert (await plane.http.post("/v1/jobs", json=REHEARSAL, headers=headers)).status_code == 201
    assert (await plane.http.post("/v1/jobs", json=REHEARSAL, headers=headers)).status_code == 200


async def test_a_request_that_has_committed_is_not_done_again(plane: Plane) -> None:
    database: Database = plane.control.database
    job = (await plane.submit())["id"]
    calls = 0

    async def request() -> None:
        nonlocal calls
        calls += 1
        async with database.transaction() as session:
            await session.execute(update(JobRow).where(JobRow.id == job).values(priority=JobRow.priority + 1))
        async with database.reading() as session:
            await session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'made up' USING ERRCODE = '40001'; END $$"))

    with pytest.raises(DBAPIError, match="made up"):
        await again.request(request)
    assert calls == 1
    async with database.reading() as session:
        assert await session.scalar(select(JobRow.priority)) == 1
