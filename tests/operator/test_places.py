"""Who may start: the highest priority, then the oldest, as long as there are places."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.domain.job import ACTIVE, Desired, Phase
from api.domain.places import may_start
from tests.operator.builders import T0, at, attempt, job

pytestmark = pytest.mark.quick


def test_priority_goes_first_then_age() -> None:
    old = job(Phase.QUEUED, id="job-old", created_at=at(0))
    young = job(Phase.QUEUED, id="job-young", created_at=at(5))
    urgent = job(Phase.QUEUED, id="job-urgent", created_at=at(9), priority=1)
    assert [j.id for j in may_start([young, old, urgent], 2, at(10)).start] == ["job-urgent", "job-old"]


def test_active_jobs_take_places() -> None:
    waiting = job(Phase.QUEUED)
    for phase in (Phase.STARTING, Phase.RUNNING, Phase.FINISHING):
        assert may_start([waiting, job(phase)], 1, T0).start == []
    for phase in (Phase.PAUSED, Phase.FAILED, Phase.SUCCEEDED):
        assert may_start([waiting, job(phase)], 1, T0).start == [waiting]


def test_a_job_that_backs_off_lets_others_pass() -> None:
    backing_off = job(Phase.QUEUED, id="job-b", priority=9, not_before=at(60))
    other = job(Phase.QUEUED)
    assert may_start([backing_off, other], 1, at(1)).start == [other]
    assert may_start([backing_off, other], 1, at(60)).start == [backing_off]


def test_unwanted_and_untidied_jobs_do_not_start() -> None:
    for desired in (Desired.PAUSE, Desired.CANCEL):
        assert may_start([job(Phase.QUEUED, desired=desired)], 1, T0).start == []
    assert may_start([job(Phase.QUEUED, attempt=attempt())], 1, T0).start == []


@given(st.lists(st.tuples(st.sampled_from(Phase), st.integers(-3, 3), st.floats(0, 100))), st.integers(0, 4))
def test_there_are_never_more_active_jobs_than_places(given: list[tuple[Phase, int, float]], places: int) -> None:
    jobs = [
        job(phase, id=f"job-{n}", priority=priority, created_at=at(age))
        for n, (phase, priority, age) in enumerate(given)
    ]
    active = sum(j.phase in ACTIVE for j in jobs)
    started = may_start(jobs, places, at(1000)).start
    assert active + len(started) <= max(places, active)
    waiting = [j for j in jobs if j.phase is Phase.QUEUED]
    assert len(started) == min(len(waiting), max(0, places - active))
