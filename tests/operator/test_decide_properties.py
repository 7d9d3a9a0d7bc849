"""What holds of every decision, whatever came before: no move is illegal, nothing that lives is taken for dead."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.domain.decide import Begin, Collect, Collected, Ensure, Move, Settle, decide
from api.domain.job import ACTIVE, FINAL, Desired, Job, Phase, Reason
from api.domain.lifecycle import MOVES, IllegalMove, check
from api.domain.observation import Observation
from tests.operator.builders import ALIVE, NOTHING, at, attempt, exited, job, spec

pytestmark = pytest.mark.quick

codes = st.sampled_from([0, 1, 2, 3, 4, 5, 77, 137, 143, None])
observations = st.one_of(
    st.just(NOTHING),
    st.just(ALIVE),
    st.just(Observation(exists=True, alive=True, orphaned=True)),
    codes.map(exited),
)
times = st.floats(0, 1e6).map(at)
maybe_times = st.none() | times
reasons = st.none() | st.sampled_from([Reason.STALLED, Reason.DEADLINE_EXCEEDED, Reason.UNSCHEDULABLE])
attempts = st.builds(
    attempt,
    number=st.integers(1, 5),
    accepted_at=maybe_times,
    progressed_at=maybe_times,
    reported_at=maybe_times,
    stopping_since=maybe_times,
    stop_reason=reasons,
    began_with_step=st.none() | st.integers(0, 50),
    cleaned=st.booleans(),
)
specs = st.builds(
    lambda wall_clock: spec(limits={"wall_clock": wall_clock} if wall_clock else {}),
    st.sampled_from([None, "1s", "1h"]),
)
jobs = st.builds(
    job,
    st.sampled_from(Phase),
    desired=st.sampled_from(Desired),
    attempt=attempts,
    spec=specs,
    fruitless=st.integers(0, 5),
    worker_errors=st.integers(0, 3),
    ran_for=st.floats(0, 1e5),
    not_before=maybe_times,
    retry_requested=st.booleans(),
    newest_checkpoint=st.none() | st.integers(0, 50),
    saved=st.booleans(),
    live_checkpoints=st.integers(0, 5),
    deleted=st.booleans(),
)


@given(jobs, st.none() | observations, times, times, st.booleans(), st.booleans())
def test_no_decision_is_an_illegal_move(
    job: Job, seen: Observation | None, now: Any, up: Any, place: bool, collected: bool
) -> None:
    phase = job.phase
    found = decide(job, seen, now, up_since=up, place=place, collected=Collected() if collected else None)
    for action in found:
        match action:
            case Move(to):
                pass
            case Settle(result):
                to = result.phase
            case Begin():
                to = Phase.STARTING
            case _:
                continue
        check(phase, to)
        phase = to


@given(jobs, times, times, st.booleans())
def test_no_answer_of_the_cluster_destroys_nothing(job: Job, now: Any, up: Any, place: bool) -> None:
    if job.phase in ACTIVE:
        assert decide(job, None, now, up_since=up, place=place) == []


@given(jobs, times, times)
def test_a_success_wins_whatever_else_happened(job: Job, now: Any, up: Any) -> None:
    finishing = replace(job, phase=Phase.FINISHING)
    [found] = decide(finishing, exited(0), now, up_since=up, collected=Collected())
    assert isinstance(found, Settle)
    assert found.outcome.phase is Phase.SUCCEEDED


@given(jobs, st.none() | observations, times, times, st.booleans())
def test_an_attempt_begins_only_where_none_is_left(
    job: Job, seen: Observation | None, now: Any, up: Any, place: bool
) -> None:
    if Begin() in decide(job, seen, now, up_since=up, place=place):
        assert job.phase is Phase.QUEUED
        assert job.attempt is None or job.attempt.cleaned


@given(jobs, observations, times, times)
def test_an_outcome_is_chosen_only_when_nothing_lives(job: Job, seen: Observation, now: Any, up: Any) -> None:
    found = decide(job, seen, now, up_since=up, collected=Collected())
    if seen.alive:
        assert not any(isinstance(action, Settle | Collect) for action in found)


@given(jobs, st.none() | observations, times, times, st.booleans())
def test_final_stays_final_but_for_retry(job: Job, seen: Observation | None, now: Any, up: Any, place: bool) -> None:
    if job.phase in FINAL and not (job.phase is Phase.FAILED and job.retry_requested):
        found = decide(job, seen, now, up_since=up, place=place)
        assert not any(isinstance(action, Move | Settle | Begin | Ensure) for action in found)


def test_the_table_has_the_designs_moves_and_no_other() -> None:
    legal = {(old, new) for old, news in MOVES.items() for new in news}
    assert len(legal) == 4 + 2 + 1 + 5 + 2 + 1
    for old in Phase:
        for new in Phase:
            if (old, new) not in legal:
                with pytest.raises(IllegalMove):
                    check(old, new)
