"""Streams go on where they broke off, over restarts of the control plane."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client import Client
from client.records import Event, LogLine, Point
from tests.client.conftest import rehearsal
from tests.e2e.plane import ControlPlane, control_plane, wait_until


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane of this test alone, to be killed."""
    with control_plane(tmp_path / "plane") as running:
        yield running


def test_events_metrics_and_logs_come_once_each_and_in_order(client: Client) -> None:
    job = client.jobs.create(rehearsal("streamed", steps=20))
    events = list(client.jobs.follow_events(job.id))
    assert [e.number for e in events] == list(range(1, len(events) + 1))
    assert events[-1].type == "Succeeded"
    points = list(client.jobs.follow_metrics(job.id))
    assert [p.id for p in points] == [p.id for p in client.jobs.metrics(job.id)]
    followed = "".join(line.text for line in client.jobs.follow_logs(job.id))
    assert followed == "".join(line.text for line in client.jobs.logs(job.id))


def test_a_stream_begins_after_what_is_known(client: Client) -> None:
    job = client.jobs.create(rehearsal("known"))
    whole = list(client.jobs.follow_events(job.id))
    assert list(client.jobs.follow_events(job.id, after=whole[1].number)) == whole[2:]


def test_streams_survive_a_killed_control_plane_without_a_gap_or_a_double(fragile: ControlPlane) -> None:
    client = fragile.client
    job = client.jobs.create(rehearsal("survivor", steps=120, seconds=0.05))
    events: list[Event] = []
    points: list[Point] = []
    lines: list[LogLine] = []

    def gather(into: list[Any], stream: Iterator[Any]) -> threading.Thread:
        thread = threading.Thread(target=lambda: into.extend(stream), daemon=True)
        thread.start()
        return thread

    threads = [
        gather(events, client.jobs.follow_events(job.id)),
        gather(points, client.jobs.follow_metrics(job.id)),
        gather(lines, client.jobs.follow_logs(job.id)),
    ]
    wait_until(lambda: (p := client.jobs.get(job.id).progress) and p.step > 10, what="a few steps")
    fragile.kill()
    fragile.start()
    wait_until(lambda: client.jobs.get(job.id).final, what="the end")
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert [e.number for e in events] == [e.number for e in client.jobs.events(job.id)]
    assert [p.id for p in points] == [p.id for p in client.jobs.metrics(job.id)]
    assert "".join(line.text for line in lines) == "".join(line.text for line in client.jobs.logs(job.id))
