"""What `rlhf watch` asks for, and that it misses nothing by asking for no more."""

import asyncio
import io
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from api.settings import load
from client import Client
from client.commands.followed import Followed
from client.commands.followed_pipeline import FollowedPipeline
from client.commands.picture import Picture
from client.records import Job
from tests.api.conftest import Plane, happenings, plane_on, points

pytestmark = pytest.mark.quick


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[Plane]:
    """A control plane without an operator: the tests say what the worker reports, and when the phase changes."""
    async with plane_on(load(data=tmp_path, database_url="", port=0, shutdown_grace=2.0)) as made:
        yield made


class Watcher:
    """A followed job: all that it was told, and what each look asked for."""

    def __init__(self, control: Plane, job: dict[str, Any]) -> None:
        self.client = Client(str(control.http.base_url), patience=0)
        self.client._transport.http.event_hooks["request"].append(self._note)
        self.followed = Followed(self.client, Job.model_validate(job))
        self.events: list[int] = []
        self.asked: list[str] = []
        self.lost: set[str] = set()

    async def look(self) -> list[str]:
        """One look; gives what it asked for: `job`, `events`, `metrics`."""
        self.asked.clear()
        self.events += [event.number for event in await asyncio.to_thread(self.followed.look)]
        return list(self.asked)

    @property
    def losses(self) -> list[tuple[int, int]]:
        """The (attempt, step) of the losses that it was told."""
        return [(point.attempt, point.step) for point in self.followed.curve]

    def _note(self, request: httpx.Request) -> None:
        last = request.url.path.rpartition("/")[2]
        self.asked.append(last if last in ("events", "metrics") else "job")
        if self.asked[-1] in self.lost:
            self.lost.remove(self.asked[-1])
            raise httpx.ConnectError("nobody answers")


@pytest.fixture
async def watcher(control: Plane) -> AsyncIterator[Watcher]:
    made = Watcher(control, await control.submit())
    yield made
    made.client.close()


def progress(step: int) -> dict[str, int]:
    """What a worker at `step` says of its progress."""
    return {"step": step, "steps": 9, "mark": step}


async def test_a_job_that_has_not_moved_is_asked_for_and_nothing_else(control: Plane, watcher: Watcher) -> None:
    assert await watcher.look() == ["job", "events", "metrics"]
    assert await watcher.look() == ["job"]
    worker = await control.start(watcher.followed.job.id)
    await worker.report(progress=progress(1), metrics=points(1))
    assert await watcher.look() == ["job", "metrics"]
    assert await watcher.look() == ["job"]
    await worker.report(progress=progress(1), events=happenings("Loaded"))
    assert await watcher.look() == ["job", "events", "metrics"]
    assert await watcher.look() == ["job"]
    assert (watcher.events, watcher.losses) == ([1, 2], [(1, 1)])


async def test_a_job_that_begins_anew_and_goes_back_shows_the_points_that_are_made_again(
    control: Plane, watcher: Watcher
) -> None:
    id = watcher.followed.job.id
    first = await control.start(id)
    await first.report(progress=progress(2), metrics=points(1, 2))
    await watcher.look()
    second = await control.start(id, number=2)
    await watcher.look()
    # The same progress as before, by another attempt.
    await second.report(progress=progress(2), metrics=points(2), resumed_from=1)
    await watcher.look()
    await second.report(progress=progress(1), metrics=points(3))
    await watcher.look()
    assert watcher.losses == [(1, 1), (1, 2), (2, 2), (2, 3)]


async def test_points_that_came_without_progress_are_shown_at_the_end_at_the_latest(
    control: Plane, watcher: Watcher
) -> None:
    id = watcher.followed.job.id
    worker = await control.start(id)
    await worker.report(progress=progress(2), metrics=points(1))
    await watcher.look()
    await worker.report(progress=progress(2), metrics=points(2))
    await control.set(id, phase="failed")
    await watcher.look()
    assert watcher.followed.over
    assert watcher.losses == [(1, 1), (1, 2)]


async def test_the_picture_shows_the_step_the_loss_the_speed_and_the_time_that_is_left(
    control: Plane, watcher: Watcher
) -> None:
    console = Console(file=io.StringIO(), width=120)
    picture = Picture(console)
    worker = await control.start(watcher.followed.job.id)
    for step in (1, 2, 3):
        told = {**progress(step), "tokens": 1000 * step, "tokens_per_second": 1234.5}
        assert (await worker.report(progress=told, metrics=points(step))).is_success
        await control.set(watcher.followed.job.id, phase="running")
        await watcher.look()
        picture.of(watcher.followed)
    console.print(picture.of(watcher.followed))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert re.search(r"3/9 +33% +\d+:\d\d", shown), shown
    for told_of in ("running", "training", "loss 3.000 ▁▅█", "1,234 tokens/s", "3,000 tokens", "Created"):
        assert told_of in shown, shown


@pytest.mark.parametrize("lost", ["events", "metrics"])
async def test_what_a_look_did_not_hear_is_asked_for_again(control: Plane, watcher: Watcher, lost: str) -> None:
    await watcher.look()
    worker = await control.start(watcher.followed.job.id)
    await worker.report(progress=progress(1), metrics=points(1), events=happenings("Loaded"))
    watcher.lost.add(lost)
    await watcher.look()
    assert watcher.followed.silent_since is not None and not watcher.lost
    await watcher.look()
    assert (watcher.events, watcher.losses) == ([1, 2], [(1, 1)])


async def test_a_server_that_does_not_count_events_is_asked_for_all_at_every_look(watcher: Watcher) -> None:
    def older(response: httpx.Response) -> None:
        response.read()
        response._content = response.content.replace(b'"event_count"', b'"not_known_yet"')

    watcher.client._transport.http.event_hooks["response"].append(older)
    for _ in range(2):
        assert await watcher.look() == ["job", "events", "metrics"]
    assert watcher.events == [1]


async def test_of_a_pipeline_nothing_is_lost_when_one_step_answers_and_the_next_does_not(control: Plane) -> None:
    with Client(str(control.http.base_url), patience=0) as client:
        steps = {name: {"stage": {"type": "rehearse"}} for name in ("one", "two")}
        made = await asyncio.to_thread(client.pipelines.create, {"name": "both", "steps": steps})
        asked: list[str] = []

        def note(request: httpx.Request) -> None:
            if request.url.path.endswith("/events"):
                asked.append(request.url.path)
                if len(asked) == 2:
                    raise httpx.ConnectError("nobody answers")

        client._transport.http.event_hooks["request"].append(note)
        followed = FollowedPipeline(client, made)
        assert await asyncio.to_thread(followed.look) == []
        assert followed.silent_since is not None
        told = await asyncio.to_thread(followed.look)
        assert [(happened.step, happened.event.type) for happened in told] == [("one", "Created"), ("two", "Created")]
        assert not await asyncio.to_thread(followed.look)
