"""What is new of many jobs is found in one look, and in order; and a key is asked after once for all who hold it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import insert
from starlette.types import Message, Receive, Scope, Send

from api.crowd import Crowd
from api.errors import Refusal
from api.routes import streamed
from api.store import events, jobs, metrics
from api.store.database import Database, utcnow
from api.store.tables import EventRow, MetricRow
from api.store.trouble import Trouble, Unavailable
from api.streams import SOURCES, Source, Streams
from api.telemetry import Telemetry
from api.trust import Trust
from tests.api.conftest import REHEARSAL
from worker.contract.check import parse_spec

# More than one query of SQLite asks for.
MANY = 230


async def test_the_new_rows_of_many_jobs_come_in_order_and_no_more_than_are_asked_for(database: Database) -> None:
    spec = parse_spec(REHEARSAL)
    async with database.transaction() as session:
        made = [(await jobs.create(session, spec, {}, project="default"))[0].id for _ in range(MANY)]
        now = utcnow()
        points = [
            {"job_id": job, "attempt": 1, "name": "train/loss", "step": step, "value": 0.0, "at": now}
            for step in range(3)
            for job in made
        ]
        await session.execute(insert(MetricRow), points)
        told = [
            {"job_id": job, "number": number, "at": now, "type": "Told", "source": "worker"}
            for number in (2, 3)
            for job in made
        ]
        await session.execute(insert(EventRow), told)
    async with database.reading() as session:
        everything = await metrics.after(session, dict.fromkeys(made, 0), 10_000)
        assert [row.id for row in everything] == sorted(row.id for row in everything)
        assert {(row.job_id, row.step) for row in everything} == {(job, step) for job in made for step in range(3)}
        cursors = {row.job_id: row.id for row in everything if row.step == 1}
        assert {row.step for row in await metrics.after(session, cursors, 10_000)} == {2}
        assert [row.id for row in await metrics.after(session, cursors, 7)] == sorted(
            row.id for row in everything if row.step == 2
        )[:7]
        assert await metrics.after(session, {}, 7) == []
        found = await events.after(session, {made[0]: 1, made[1]: 2, made[2]: 3}, 10)
        assert sorted((made.index(row.job_id), row.number) for row in found) == [(0, 2), (0, 3), (1, 3)]
        assert [row.number for row in await events.after(session, {made[5]: 1}, 1)] == [2]


@pytest.mark.quick
async def test_what_happens_while_a_stream_looks_for_the_first_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Quiet:
        @asynccontextmanager
        async def reading(self) -> AsyncIterator[None]:
            yield

    streams, there = Streams(Quiet()), []  # type: ignore[arg-type]

    async def after(session: Any, cursors: dict[str, int], limit: int) -> list[Any]:
        found = list(there)
        if not there:
            # Stored after this look, and before it is answered; and the poll has seen it.
            there.append(SimpleNamespace(number=1))
            topic = streams._topics["events", "job-a"]
            topic.floor = topic.cursor = 1
            topic.advance()
        return found

    monkeypatch.setitem(SOURCES, "events", Source(after, lambda row: int(row.number), lambda *_: None))  # type: ignore[arg-type, return-value]
    async with aclosing(streams.rows("events", "job-a", 0)) as told, asyncio.timeout(5):  # type: ignore[type-var]
        assert [row.number for row in await anext(told)] == [1]  # type: ignore[union-attr]


@pytest.mark.quick
async def test_a_key_is_asked_after_once_for_all_who_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked:
        times, good = 0, True

        async def look(self, work: Callable[[Any], bool]) -> bool:
            self.times += 1
            await asyncio.sleep(0)
            return self.good

    asked = Asked()
    trust = Trust(asked)  # type: ignore[arg-type]
    assert all(await asyncio.gather(*(trust.good("key-a") for _ in range(100))))
    assert asked.times == 1
    assert await trust.good("key-b") and asked.times == 2
    asked.good = False
    monkeypatch.setattr("api.trust.KEPT", 0.0)
    assert not await trust.good("key-a")


@pytest.mark.quick
async def test_a_stream_ends_quietly_where_the_database_is_away() -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"told"
        raise Unavailable(Trouble.AWAY)

    caller: Any = SimpleNamespace(key=None)
    assert [part async for part in streamed._as_long_as_allowed(None, caller, content())] == [b"told"]  # type: ignore[arg-type]


@pytest.mark.quick
async def test_who_comes_where_too_many_are_is_refused_at_once_and_the_others_are_answered() -> None:
    leave, sent = asyncio.Event(), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await leave.wait()

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    async def trickle() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b".", "more_body": not leave.is_set()}

    telemetry = Telemetry()
    crowd, scope = Crowd(app, telemetry, most=2), {"type": "http"}
    # Those whose bodies do not come to an end are not among them.
    slow = [asyncio.create_task(crowd(scope, trickle, send)) for _ in range(3)]
    await asyncio.sleep(0)
    inside = [asyncio.create_task(crowd(scope, receive, send)) for _ in range(2)]
    await asyncio.sleep(0)
    await crowd(scope, receive, send)
    assert sent[0]["status"] == 503 and (b"retry-after", b"2") in sent[0]["headers"]
    assert b'rlhf_reports_total{outcome="crowded"} 1.0' in telemetry.exposed()
    leave.set()
    # The third of these comes to its end where two are in.
    with pytest.raises(Refusal, match="send it again"):
        await asyncio.gather(*inside, *slow)
    assert crowd.inside == 0
    sent.clear()
    await crowd(scope, receive, send)
    assert sent == []
