"""Projects that may use so much at a time: jobs beyond that wait in the queue, in order, and are told why."""

from typing import Any

import pytest

from api.domain.job import Job, Phase, Reason
from api.domain.places import may_start
from api.domain.quota import Limit
from tests.operator.builders import T0, job
from worker.contract.check import parse_spec

pytestmark = pytest.mark.quick
MANY = 100


def asking(id: str, per_node: int, phase: Phase = Phase.QUEUED, **fields: Any) -> Job:
    """A job of project `p` that asks for so many GPUs."""
    resources = {"per_node": per_node, "accelerator": "nvidia.com/gpu"} if per_node else {}
    spec = parse_spec({"stage": {"type": "rehearse", "steps": 3}, "resources": resources})
    return job(phase, id=id, project_id="p", spec=spec, **fields)


def started(jobs: list[Job], limit: Limit, places: int = MANY) -> tuple[list[str], dict[str, str | None]]:
    turn = may_start(jobs, places, T0, {"p": limit})
    return [each.id for each in turn.start], {each.id: said for each, said in turn.held}


def test_more_jobs_than_a_project_may_have_wait() -> None:
    waiting = [asking(f"job-{letter}", 0) for letter in "abc"]
    others = job(Phase.QUEUED, id="job-other", project_id="q")
    start, held = started([asking("job-runs", 0, Phase.RUNNING), *waiting, others], Limit("small", jobs=2))
    assert start == ["job-a", "job-other"]
    assert held == dict.fromkeys(("job-b", "job-c"), "project small has all the active jobs that it may: 2")


def test_accelerators_are_counted_and_nobody_overtakes_who_waits() -> None:
    jobs = [asking("job-runs", 4, Phase.STARTING), asking("job-a", 6), asking("job-b", 1), asking("job-c", 0)]
    start, held = started(jobs, Limit("small", accelerators=8))
    assert start == []
    assert held["job-a"] == "it asks for 6 accelerators, and project small has 4 of the 8 that it may"
    assert held["job-b"] == held["job-c"] == "it comes after one of project small that waits for its quota"


def test_one_that_can_never_start_keeps_nobody_waiting() -> None:
    start, held = started([asking("job-a", 16), asking("job-b", 8)], Limit("small", accelerators=8))
    assert start == ["job-b"]
    assert held == {"job-a": "it asks for 16 accelerators, and project small may have 8 in all"}


def test_a_higher_priority_takes_what_is_left() -> None:
    start, _ = started([asking("job-a", 0), asking("job-b", 0, priority=5)], Limit("small", jobs=1))
    assert start == ["job-b"]


def test_what_is_told_of_a_quota_goes_when_only_a_place_is_missing() -> None:
    waits = asking("job-a", 0, reason=Reason.QUOTA_WAIT)
    running = asking("job-runs", 0, Phase.RUNNING)
    assert started([running, waits], Limit("small", jobs=2), places=1) == ([], {"job-a": None})
    assert started([running, waits], Limit("small", jobs=2), places=2) == (["job-a"], {})
    said = "project small has all the active jobs that it may: 1"
    assert started([running, waits], Limit("small", jobs=1), places=1) == ([], {"job-a": said})
