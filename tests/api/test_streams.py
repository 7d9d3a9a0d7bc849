"""Server-sent events: nothing lost, nothing doubled, and an end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import httpx_sse
import pytest
from sqlalchemy import delete

from api import streams
from api.serve import running
from api.settings import Settings
from api.store.tables import EventRow, JobRow
from tests.api.conftest import REHEARSAL, Plane, Worker, happenings, paths, points


@dataclass(frozen=True)
class Sent:
    event: str
    id: str
    data: Any


@asynccontextmanager
async def following(plane: Plane, path: str, last_id: str = "") -> AsyncIterator[AsyncIterator[Sent]]:
    """The events of a stream, as they come."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    async with httpx_sse.aconnect_sse(plane.http, "GET", path, headers=headers) as source:
        assert source.response.status_code in (200, 204)

        async def sent() -> AsyncIterator[Sent]:
            if source.response.status_code == 204:
                return
            async for event in source.aiter_sse():
                yield Sent(event.event, event.id, json.loads(event.data))

        yield sent()


async def whole(plane: Plane, path: str, last_id: str = "") -> list[Sent]:
    """All events of a stream that ends."""
    async with asyncio.timeout(20), following(plane, path, last_id) as sent:
        return [event async for event in sent]


async def take(sent: AsyncIterator[Sent], count: int) -> list[Sent]:
    async with asyncio.timeout(20):
        return [await anext(sent) for _ in range(count)]


async def working(plane: Plane) -> tuple[str, Worker]:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    assert (await worker.report()).is_success
    return job, worker


async def test_a_stream_sends_what_was_and_what_comes_and_ends_with_the_job(plane: Plane) -> None:
    job, worker = await working(plane)
    async with following(plane, f"/v1/jobs/{job}/events/stream") as sent:
        assert [e.data["type"] for e in await take(sent, 1)] == ["Created"]
        await worker.report(events=happenings("Loaded", "Saved"))
        assert [e.data["type"] for e in await take(sent, 2)] == ["Loaded", "Saved"]
        await worker.report(events=happenings("Last"))
        await plane.set(job, phase="succeeded")
        rest = await take(sent, 2)
        assert (rest[0].data["type"], rest[0].id, rest[1].event, rest[1].data) == (
            "Last",
            "4",
            "end",
            {"phase": "succeeded"},
        )
        with pytest.raises(StopAsyncIteration):
            await anext(sent)


@pytest.mark.parametrize("kind", ["events", "metrics"])
async def test_a_stream_that_breaks_anywhere_goes_on_without_loss_or_doubles(
    plane: Plane, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small enough that the stream falls back from the poll's buffer to the database and returns to it.
    monkeypatch.setattr(streams, "_PAGE", 3)
    job, worker = await working(plane)
    total = 60

    async def write() -> None:
        for step in range(total):
            await worker.report(metrics=points(step), events=happenings(f"Step{step}"))
        await plane.set(job, phase="succeeded")

    writing = asyncio.create_task(write())
    seen: list[Sent] = []
    ended = False
    while not ended:
        last_id = seen[-1].id if seen else ""
        async with asyncio.timeout(30), following(plane, f"/v1/jobs/{job}/{kind}/stream", last_id) as sent:
            for _ in range(7):
                if (event := await anext(sent, None)) is None:
                    # Nothing was left: it is not a stream any more.
                    ended = True
                    break
                if event.event == "end":
                    ended = True
                    break
                seen.append(event)
    await writing
    if kind == "metrics":
        assert [event.data["step"] for event in seen] == list(range(total))
    else:
        assert [event.data["number"] for event in seen] == list(range(1, total + 2))


@pytest.mark.parametrize("kind", ["events", "metrics", "logs"])
async def test_a_browser_that_comes_back_after_the_end_is_told_to_stop(
    plane: Plane, settings: Settings, kind: str
) -> None:
    job, _ = await working(plane)
    folder = settings.data / "attempts" / f"{job}-a1" / "log"
    folder.mkdir(parents=True)
    (folder / "rank-0.log").write_text("a line\n")
    await plane.set(job, phase="succeeded")
    url = f"/v1/jobs/{job}/{kind}/stream"
    last = (await whole(plane, url))[-1]
    assert (last.event, bool(last.id)) == ("end", True)
    again = await plane.http.get(url, headers={"Last-Event-ID": last.id})
    assert (again.status_code, again.content) == (204, b"")
    # Who asks for the first time is told how it ended; who was retried meanwhile is followed on.
    assert [event.event for event in await whole(plane, url)][-1] == "end"
    await plane.set(job, phase="queued")
    async with asyncio.timeout(20), plane.http.stream("GET", url, headers={"Last-Event-ID": last.id}) as following_on:
        assert following_on.status_code == 200


async def test_many_streams_of_one_job_all_see_everything(plane: Plane) -> None:
    job, worker = await working(plane)
    readers = [asyncio.create_task(whole(plane, f"/v1/jobs/{job}/metrics/stream")) for _ in range(20)]
    for step in range(30):
        await worker.report(metrics=points(step))
    await plane.set(job, phase="succeeded")
    for reader in readers:
        assert [event.data["step"] for event in (await reader)[:-1]] == list(range(30))


async def test_a_stream_also_comes_by_accept_and_by_follow(plane: Plane) -> None:
    job, _ = await working(plane)
    await plane.set(job, phase="succeeded")
    events = await whole(plane, f"/v1/jobs/{job}/events")
    assert [event.event for event in events] == ["message", "end"]
    answer = await plane.http.get(f"/v1/jobs/{job}/events", params={"follow": "true", "after": 1})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.startswith("event: end")


async def test_a_metric_stream_sends_only_the_names_asked_for(plane: Plane) -> None:
    job, worker = await working(plane)
    await worker.report(metrics=points(1) + points(1, 2, name="eval/loss"))
    await plane.set(job, phase="failed")
    events = await whole(plane, f"/v1/jobs/{job}/metrics/stream?name=eval/loss")
    assert [event.data["name"] for event in events[:-1]] == ["eval/loss", "eval/loss"]


async def test_an_id_that_no_stream_has_sent_is_refused(plane: Plane) -> None:
    job, _ = await working(plane)
    for kind in ("events", "metrics", "logs"):
        answer = await plane.http.get(f"/v1/jobs/{job}/{kind}/stream", headers={"Last-Event-ID": "x/y"})
        assert answer.status_code == 422
        assert paths(answer) == ["Last-Event-ID"]


async def test_a_log_is_followed_through_attempts_into_the_store(plane: Plane, settings: Settings) -> None:
    job, _ = await working(plane)

    def write(attempt: int, rank: int, text: str) -> None:
        path = settings.data / "attempts" / f"{job}-a{attempt}" / "log" / f"rank-{rank}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(text)

    write(1, 0, "one\nto be contin")
    write(1, 1, "other rank\n")
    async with following(plane, f"/v1/jobs/{job}/logs/stream") as sent:
        first = await take(sent, 2)
        assert [(e.data["rank"], e.data["text"]) for e in first] == [(0, "one\n"), (1, "other rank\n")]
        write(1, 0, "ued\n")
        [line] = await take(sent, 1)
        assert (line.data["text"], line.id) == ("to be continued\n", "1/0:20,1:11")
    # The next attempt; the first one's log is in the store now, and its folder is gone.
    write(1, 0, "without an end")
    kept = settings.store_path / "logs" / job / "a1"
    kept.parent.mkdir(parents=True)
    (settings.data / "attempts" / f"{job}-a1" / "log").rename(kept)
    await plane.start(job, 2)
    write(2, 0, "two\n")
    await plane.set(job, phase="succeeded")
    rest = await whole(plane, f"/v1/jobs/{job}/logs/stream", line.id)
    assert [(e.data["attempt"], e.data["text"]) for e in rest[:-1]] == [(1, "without an end"), (2, "two\n")]
    assert rest[-1].event == "end"


async def test_a_log_whose_beginning_is_not_kept_goes_on_where_the_reader_was(plane: Plane, settings: Settings) -> None:
    job, _ = await working(plane)
    live = settings.data / "attempts" / f"{job}-a1" / "log" / "rank-0.log"
    live.parent.mkdir(parents=True)
    live.write_text("first\nsecond\n")
    async with following(plane, f"/v1/jobs/{job}/logs/stream") as sent:
        [seen] = await take(sent, 1)
    live.write_text("first\nsecond\nthird\n")
    # Kept without its first line, as the log of a long job is without its first megabytes.
    kept = settings.store_path / "logs" / job / "a1" / "rank-0.from-6.log"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(live.read_bytes()[6:])
    live.unlink()
    await plane.set(job, phase="succeeded")
    rest = await whole(plane, f"/v1/jobs/{job}/logs/stream", seen.id)
    assert [event.data["text"] for event in rest[:-1]] == ["third\n"]


async def test_the_tail_of_each_rank_s_log_is_shown(plane: Plane, settings: Settings) -> None:
    job, _ = await working(plane)
    assert (await plane.http.get(f"/v1/jobs/{job}/logs")).json()["data"] == []
    folder = settings.data / "attempts" / f"{job}-a1" / "log"
    folder.mkdir(parents=True)
    (folder / "rank-0.log").write_text("a\nb\nc\n")
    (folder / "rank-1.log").write_bytes(b"not \xff UTF-8\n")
    logs = (await plane.http.get(f"/v1/jobs/{job}/logs", params={"tail": 2})).json()["data"]
    assert [(part["rank"], part["text"]) for part in logs] == [(0, "b\nc\n"), (1, "not \ufffd UTF-8\n")]
    [one] = (await plane.http.get(f"/v1/jobs/{job}/logs", params={"rank": 1})).json()["data"]
    assert one["rank"] == 1


async def test_streams_close_when_the_control_plane_stops(settings: Settings) -> None:
    async with httpx.AsyncClient(timeout=30) as http:
        async with running(settings, "api") as this:
            assert this.url
            job = (await http.post(f"{this.url}/v1/jobs", json=REHEARSAL)).json()["id"]
            source = await http.send(http.build_request("GET", f"{this.url}/v1/jobs/{job}/events/stream"), stream=True)
            lines = source.aiter_lines()
            assert (await anext(lines)).startswith(("id:", "data:"))
            began = asyncio.get_running_loop().time()
        # Closed by the server, in order: the client is not cut off.
        assert [line async for line in lines if line.startswith("event")] == []
        await source.aclose()
    # Long before the server's patience with a request that does not end.
    assert asyncio.get_running_loop().time() - began < settings.shutdown_grace


async def test_a_stream_of_a_job_that_is_purged_ends_with_the_phase_it_had(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    async with following(plane, f"/v1/jobs/{job}/events/stream") as sent, asyncio.timeout(20):
        await take(sent, 1)
        await plane.set(job, phase="failed", retry_requested=True)
        topic = plane.control.streams._topics["events", job]
        while topic.phase != "failed":
            await topic.turn.wait()
        async with plane.control.database.transaction() as session:
            await session.execute(delete(EventRow).where(EventRow.job_id == job))
            await session.execute(delete(JobRow).where(JobRow.id == job))
        [end] = await take(sent, 1)
        assert (end.event, end.data) == ("end", {"phase": "failed"})


async def test_a_stream_of_a_job_that_is_deleted_ends(plane: Plane) -> None:
    job, _ = await working(plane)
    async with following(plane, f"/v1/jobs/{job}/events/stream") as sent:
        await take(sent, 1)
        await plane.set(job, phase="failed")
        await plane.http.delete(f"/v1/jobs/{job}")
        assert [event.event for event in await take(sent, 1)] == ["end"]
    with pytest.raises(httpx.HTTPStatusError):
        (await plane.http.get(f"/v1/jobs/{job}/events")).raise_for_status()
