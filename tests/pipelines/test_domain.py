"""Which step may start, which never can, and how a pipeline stands as a whole."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.domain.decide import Begin, Move, Resolve, decide
from api.domain.job import FINAL, Desired, Fault, Job, Need, Phase, Reason
from api.domain.pipeline import Standing, hopeless, phase_of
from api.domain.places import may_start
from tests.operator.builders import T0, attempt, job

pytestmark = pytest.mark.quick

needs_of = st.builds(
    Need,
    path=st.just("stage.model"),
    step=st.sampled_from("ab"),
    output=st.just("model"),
    job=st.just("job-b"),
    phase=st.sampled_from(Phase),
    retried=st.booleans(),
    reason=st.none() | st.just(Reason.DIVERGED),
    fault=st.none() | st.sampled_from(Fault),
)


def need(phase: Phase, step: str = "sft", **fields: Any) -> Need:
    return Need("stage.model", step, "model", f"job-{step}", phase, **fields)


def waiting(*needs: Need, phase: Phase = Phase.QUEUED, **fields: Any) -> Job:
    return job(phase, **{"attempt": None, "needs": needs, **fields})


def actions(job: Job) -> list[Any]:
    return decide(job, None, T0, up_since=T0, place=True)


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase not in FINAL])
def test_a_step_waits_for_what_it_needs_though_there_is_a_place(phase: Phase) -> None:
    assert actions(waiting(need(Phase.SUCCEEDED, "rm"), need(phase))) == []


def test_what_a_step_needs_is_looked_up_once_all_of_it_is_there() -> None:
    assert actions(waiting(need(Phase.SUCCEEDED), need(Phase.SUCCEEDED, "rm"))) == [Resolve()]


def test_a_step_without_needs_begins() -> None:
    assert actions(waiting()) == [Begin()]


def test_a_step_fails_with_what_it_needs_and_by_the_same_fault() -> None:
    failed = need(Phase.FAILED, reason=Reason.NODE_LOST, fault=Fault.INFRA)
    [found] = actions(waiting(need(Phase.RUNNING, "rm"), failed))
    assert found == Move(Phase.FAILED, Reason.DEPENDENCY_FAILED, "the step `sft` failed: NodeLost", fault=Fault.INFRA)
    [found] = actions(waiting(need(Phase.CANCELLED)))
    assert (found.reason, found.fault) == (Reason.DEPENDENCY_FAILED, Fault.USER)


def test_a_step_waits_for_what_is_about_to_be_tried_again() -> None:
    assert actions(waiting(need(Phase.FAILED, retried=True))) == []


def test_a_waiting_step_is_cancelled_and_paused_like_any_other() -> None:
    assert actions(waiting(need(Phase.FAILED), desired=Desired.CANCEL))[0].phase is Phase.CANCELLED
    assert actions(waiting(need(Phase.RUNNING), desired=Desired.PAUSE))[0].phase is Phase.PAUSED


def test_a_step_that_comes_back_to_the_queue_says_again_what_it_waits_for() -> None:
    needs = (need(Phase.RUNNING), need(Phase.RUNNING, "rm"))
    for back in (waiting(*needs, phase=Phase.PAUSED), waiting(*needs, phase=Phase.FAILED, retry_requested=True)):
        [found] = actions(back)
        assert (found.phase, found.reason) == (Phase.QUEUED, Reason.AWAITING_STEP)
        assert found.message == "waits for the steps rm, sft"


def test_who_waits_for_a_step_takes_no_place_from_others() -> None:
    behind = waiting(need(Phase.RUNNING), priority=9)
    free = waiting(id="job-free")
    assert may_start([behind, free], 1, T0).start == [free]


@given(st.lists(needs_of, min_size=1, max_size=4))
def test_a_step_begins_only_once_its_inputs_are_known(needs: list[Need]) -> None:
    found = actions(waiting(*needs))
    assert Begin() not in found
    if Resolve() in found:
        assert all(need.phase is Phase.SUCCEEDED for need in needs)


S, F, C, Q, R, P = (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED, Phase.QUEUED, Phase.RUNNING, Phase.PAUSED)


@pytest.mark.parametrize(
    ("steps", "whole"),
    [
        ([S, S], S),
        ([S, F, C], F),
        ([S, C], C),
        ([Q, Q], Q),
        ([S, Q], R),
        ([F, R], R),
        ([S, P], P),
        ([P, Q], R),
        ([S, Phase.FINISHING], R),
    ],
)
def test_a_pipeline_stands_as_its_steps_do(steps: list[Phase], whole: Phase) -> None:
    assert phase_of(Standing(phase, started=phase is not Q) for phase in steps) is whole


def test_a_pipeline_whose_other_steps_wait_for_a_paused_one_is_paused() -> None:
    assert phase_of([Standing(P, started=True), Standing(Q, waiting=True)]) is P


def test_a_pipeline_with_a_step_to_be_tried_again_is_not_over() -> None:
    assert phase_of([Standing(S, started=True), Standing(F, retried=True, started=True)]) is R


def test_what_stands_behind_a_cancelled_step_is_hopeless_however_far() -> None:
    needs = {"b": {"a"}, "c": {"b", "x"}, "d": {"x"}}
    assert hopeless(needs, {"a"}) == {"b", "c"}
    assert hopeless(needs, set()) == set()


def test_a_step_that_was_tidied_away_late_still_waits() -> None:
    late = replace(waiting(need(Phase.RUNNING)), attempt=attempt(cleaned=True))
    assert actions(late) == []
