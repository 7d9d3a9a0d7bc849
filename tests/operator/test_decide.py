"""What the operator does about a job, whatever its cluster and its owner say."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from api.domain.decide import (
    Action,
    Begin,
    CleanUp,
    Collect,
    Collected,
    Ensure,
    Move,
    Prune,
    Purge,
    Settle,
    Stop,
    decide,
)
from api.domain.job import Desired, Job, Phase, Reason
from api.domain.observation import Observation
from api.domain.outcome import Backoff, Outcome
from tests.operator.builders import ALIVE, NOTHING, T0, at, attempt, exited, job, spec
from worker.contract.protocol import Termination

pytestmark = pytest.mark.quick


def actions(job: Job, seen: Observation | None = ALIVE, seconds: float = 1.0, **given: Any) -> list[Action]:
    return decide(job, seen, at(seconds), **{"up_since": T0, **given})


def outcome(job: Job, seen: Observation, seconds: float = 1.0, spoilt: str | None = None) -> Outcome:
    found = actions(replace(job, phase=Phase.FINISHING), seen, seconds, collected=Collected(spoilt))
    assert len(found) == 1
    assert isinstance(found[0], Settle)
    return found[0].outcome


def stopping(reason: Reason | None = None, **fields: Any) -> Job:
    return job(attempt=attempt(accepted_at=T0, stopping_since=T0, stop_reason=reason), **fields)


# queued and paused


def test_a_queued_job_begins_only_with_a_place() -> None:
    assert actions(job(Phase.QUEUED), None, place=True) == [Begin()]
    assert actions(job(Phase.QUEUED), None, place=False) == []


def test_a_queued_job_waits_out_its_back_off() -> None:
    waiting = job(Phase.QUEUED, not_before=at(10))
    assert actions(waiting, None, 9, place=True) == []
    assert actions(waiting, None, 10, place=True) == [Begin()]


def test_nothing_begins_before_the_last_attempt_is_tidied_away() -> None:
    assert actions(job(Phase.QUEUED, attempt=attempt()), None, place=True) == [CleanUp()]


@pytest.mark.parametrize(
    ("phase", "desired", "to"),
    [
        (Phase.QUEUED, Desired.CANCEL, Phase.CANCELLED),
        (Phase.QUEUED, Desired.PAUSE, Phase.PAUSED),
        (Phase.PAUSED, Desired.CANCEL, Phase.CANCELLED),
        (Phase.PAUSED, Desired.RUN, Phase.QUEUED),
    ],
)
def test_a_job_without_an_attempt_follows_its_owners_wish_at_once(phase: Phase, desired: Desired, to: Phase) -> None:
    [found] = actions(job(phase, desired=desired), None, place=True)
    assert isinstance(found, Move)
    assert found.phase is to


def test_retry_sends_a_failed_job_back_with_its_counts_at_zero() -> None:
    [found] = actions(job(Phase.FAILED, retry_requested=True), None)
    assert isinstance(found, Move)
    assert (found.phase, found.fresh) == (Phase.QUEUED, True)


def test_a_deleted_job_is_purged_once_its_objects_are_gone() -> None:
    deleted = job(Phase.SUCCEEDED, deleted=True)
    assert actions(deleted, None) == [Purge()]
    assert actions(replace(deleted, attempt=attempt()), None) == [CleanUp()]


# starting and running


def test_a_starting_job_without_objects_gets_them() -> None:
    assert actions(job(Phase.STARTING), NOTHING) == [Ensure()]


def test_a_starting_job_that_nobody_wants_any_more_gets_no_objects() -> None:
    for desired in (Desired.PAUSE, Desired.CANCEL):
        assert actions(job(Phase.STARTING, desired=desired), NOTHING) == [Move(Phase.FINISHING)]


def test_a_job_runs_from_its_first_accepted_report_on() -> None:
    assert actions(job(Phase.STARTING)) == []
    assert actions(job(Phase.STARTING, attempt=attempt(accepted_at=T0))) == [Move(Phase.RUNNING)]


def test_a_start_that_takes_too_long_is_given_up_counted_from_when_we_came_up() -> None:
    silent = job(Phase.STARTING, spec=spec(limits={"start": "60s"}))
    assert actions(silent, seconds=60) == []
    assert actions(silent, seconds=100, up_since=at(50)) == []
    stop, move = actions(silent, seconds=61)
    assert isinstance(stop, Stop)
    assert stop.reason is Reason.UNSCHEDULABLE
    assert move == Move(Phase.FINISHING)


def test_a_pause_leaves_a_job_running_until_its_grace_is_over() -> None:
    grace = spec(checkpoint={"grace": "60s"})
    assert actions(job(desired=Desired.PAUSE, spec=grace)) == [Stop(60.0)]
    asked = stopping(desired=Desired.PAUSE, spec=grace)
    assert actions(asked, seconds=59) == [Stop(60.0, record=False)]
    assert Move(Phase.FINISHING) in actions(asked, seconds=60)


def test_a_pause_ends_a_start_at_once() -> None:
    assert actions(job(Phase.STARTING, desired=Desired.PAUSE)) == [Move(Phase.FINISHING)]


def test_an_attempt_that_is_over_is_finished() -> None:
    for seen in (exited(0), exited(None), NOTHING):
        assert actions(job(), seen) == [Move(Phase.FINISHING)]


def test_ranks_without_their_launcher_are_ended() -> None:
    orphaned = Observation(exists=True, alive=True, orphaned=True)
    assert actions(job(), orphaned) == [Move(Phase.FINISHING)]
    [stop] = actions(job(Phase.FINISHING), orphaned)
    assert isinstance(stop, Stop)
    assert stop.reason is Reason.KILLED


def test_running_time_is_summed_over_attempts_against_the_wall_clock_limit() -> None:
    limited = job(spec=spec(limits={"wall_clock": "100s"}, checkpoint={"grace": "60s"}), ran_for=90.0)
    assert actions(limited, seconds=10) == []
    [stop] = actions(limited, seconds=11)
    assert isinstance(stop, Stop)
    assert (stop.reason, stop.grace) == (Reason.DEADLINE_EXCEEDED, 60.0)


def test_a_job_without_progress_is_stalled() -> None:
    assert actions(_standing(reported=60), seconds=60) == []
    stop, move = actions(_standing(reported=61), seconds=61)
    assert isinstance(stop, Stop)
    assert (stop.reason, stop.grace) == (Reason.STALLED, 10.0)
    assert move == Move(Phase.FINISHING)


def test_a_job_that_is_not_heard_is_not_called_stalled() -> None:
    assert actions(_standing(reported=60), seconds=100_000) == []


def test_a_stall_is_counted_from_when_we_came_up() -> None:
    assert actions(_standing(reported=1000), seconds=1000, up_since=at(940)) == []
    assert actions(_standing(reported=1001), seconds=1001, up_since=at(940)) != []


def test_progress_puts_a_stall_off() -> None:
    assert actions(_standing(reported=110, progressed=50), seconds=110) == []


def _standing(reported: float, progressed: float = 0) -> Job:
    """A job that may stand still for a minute."""
    told = attempt(accepted_at=T0, progressed_at=at(progressed), reported_at=at(reported))
    return job(spec=spec(limits={"stall": "60s"}), attempt=told)


def test_checkpoints_beyond_keep_are_pruned() -> None:
    assert actions(job(live_checkpoints=3)) == [Prune()]
    assert actions(job(live_checkpoints=2)) == []


def test_a_final_job_is_pruned_before_it_is_tidied_after_which_nobody_looks_at_it() -> None:
    assert actions(job(Phase.SUCCEEDED, attempt=attempt(), live_checkpoints=3), None) == [Prune(), CleanUp()]


# finishing


def test_what_lives_in_finishing_is_stopped_and_what_is_dead_is_collected_first() -> None:
    assert actions(job(Phase.FINISHING, desired=Desired.PAUSE)) == [Stop(10.0)]
    assert actions(job(Phase.FINISHING), exited(0)) == [Collect()]


def test_what_nobody_wished_to_end_is_not_recorded_as_asked_to() -> None:
    # One of two pods failed and is gone, the other one still ends, and the cluster does not say yet that it failed.
    assert actions(job(Phase.FINISHING)) == [Stop(10.0, record=False)]
    assert actions(job(Phase.FINISHING, desired=Desired.PAUSE), replace(ALIVE, failing=True)) == [
        Stop(10.0, record=False)
    ]


def test_an_attempt_that_waits_in_its_queue_once_more_is_over() -> None:
    waits = Observation(exists=True, alive=True, suspended=True, held="preempted by another")
    assert actions(job(), waits) == [Move(Phase.FINISHING)]
    accepted = job(Phase.FINISHING, attempt=attempt(accepted_at=T0))
    assert actions(accepted, waits) == [Stop(10.0, Reason.PREEMPTED, "preempted by another")]


@pytest.mark.parametrize("desired", Desired)
@pytest.mark.parametrize("reason", [None, Reason.STALLED, Reason.DEADLINE_EXCEEDED])
def test_a_success_wins_any_race(desired: Desired, reason: Reason | None) -> None:
    assert outcome(stopping(reason, desired=desired), exited(0)).phase is Phase.SUCCEEDED


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 137, 143, None])
def test_a_cancel_wins_over_everything_but_success(code: int | None) -> None:
    ended = outcome(stopping(desired=Desired.CANCEL), exited(code))
    assert (ended.phase, ended.reason) == (Phase.CANCELLED, Reason.CANCELLED_BY_USER)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (2, Reason.INVALID_SPEC),
        (3, Reason.INVALID_DATA),
        (4, Reason.DIVERGED),
        (5, Reason.OUT_OF_MEMORY),
    ],
)
@pytest.mark.parametrize("desired", [Desired.RUN, Desired.PAUSE])
def test_a_fault_of_the_user_fails_the_job_even_in_a_pause(code: int, reason: Reason, desired: Desired) -> None:
    ended = outcome(job(desired=desired), exited(code))
    assert (ended.phase, ended.reason, ended.fault) == (Phase.FAILED, reason, "user")
    assert ended.message == "words"


@pytest.mark.parametrize("code", [1, 137, 143, None])
def test_a_pause_wins_over_a_next_attempt(code: int | None) -> None:
    ended = outcome(job(desired=Desired.PAUSE), exited(code))
    assert (ended.phase, ended.reason) == (Phase.PAUSED, Reason.PAUSED_BY_USER)


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (exited(137), Reason.KILLED),
        (exited(None), Reason.KILLED),
        (exited(143), Reason.PREEMPTED),
        (NOTHING, Reason.KILLED),
        (replace(exited(None), reason="NodeLost"), Reason.NODE_LOST),
    ],
)
def test_what_the_machine_did_is_followed_by_the_next_attempt(seen: Observation, reason: Reason) -> None:
    ended = outcome(job(), seen)
    assert (ended.phase, ended.ending.reason, ended.fault) == (Phase.QUEUED, reason, None)
    assert ended.not_before == at(1 + 10)
    assert ended.fruitless == 1


def test_a_stalled_attempt_is_followed_by_the_next() -> None:
    ended = outcome(stopping(Reason.STALLED), exited(None))
    assert (ended.phase, ended.ending.reason) == (Phase.QUEUED, Reason.STALLED)


def test_a_job_past_its_wall_clock_fails_though_it_stopped_in_order() -> None:
    ended = outcome(stopping(Reason.DEADLINE_EXCEEDED), exited(143))
    assert (ended.phase, ended.reason, ended.fault) == (Phase.FAILED, Reason.DEADLINE_EXCEEDED, "user")


def test_attempts_in_a_row_without_a_new_checkpoint_run_out() -> None:
    counts = [(0, Phase.QUEUED), (1, Phase.QUEUED), (2, Phase.FAILED)]
    for fruitless, phase in counts:
        ended = outcome(job(fruitless=fruitless), exited(137))
        assert (ended.phase, ended.fruitless) == (phase, fruitless + 1)
    assert "3 attempts in a row made no new checkpoint" in ended.message
    assert ended.reason is Reason.KILLED


def test_a_new_checkpoint_starts_the_count_again() -> None:
    began = attempt(accepted_at=T0, began_with_step=10)
    assert outcome(job(attempt=began, fruitless=2, newest_checkpoint=20, saved=True), exited(137)).fruitless == 0
    assert outcome(job(attempt=began, fruitless=2, newest_checkpoint=10), exited(137)).phase is Phase.FAILED


def test_attempts_that_ended_as_asked_do_not_count() -> None:
    paused = outcome(stopping(desired=Desired.PAUSE, fruitless=2), exited(143))
    assert (paused.phase, paused.fruitless, paused.ending.reason) == (Phase.PAUSED, 2, None)
    killed_after_grace = outcome(stopping(desired=Desired.PAUSE, fruitless=2), exited(None))
    assert killed_after_grace.fruitless == 2


def test_a_guard_pauses_a_job_until_its_owner_lets_it_go_on() -> None:
    word = Termination(outcome="stopped", reason="PausedByGuard", message="KL", exit_code=143)
    seen = replace(exited(143), termination=word)
    ended = outcome(job(fruitless=1), seen)
    assert (ended.phase, ended.reason, ended.message, ended.fruitless) == (
        Phase.PAUSED,
        Reason.PAUSED_BY_GUARD,
        "KL",
        1,
    )
    assert ended.ending.reason is None
    assert outcome(job(desired=Desired.CANCEL), seen).phase is Phase.CANCELLED


def test_a_pause_that_was_taken_back_goes_on_at_once() -> None:
    ended = outcome(stopping(), exited(143))
    assert (ended.phase, ended.not_before, ended.fruitless) == (Phase.QUEUED, None, 0)


def test_a_workers_error_is_tried_once_more() -> None:
    first = outcome(job(), exited(1))
    assert (first.phase, first.worker_errors) == (Phase.QUEUED, 1)
    second = outcome(job(worker_errors=1), exited(1))
    assert (second.phase, second.reason, second.fault) == (Phase.FAILED, Reason.WORKER_ERROR, "system")


def test_an_unknown_exit_code_is_a_workers_error() -> None:
    assert outcome(job(), exited(77)).ending.reason is Reason.WORKER_ERROR


@pytest.mark.parametrize("reason", [Reason.UNSCHEDULABLE, Reason.IMAGE_PULL, Reason.STORE_FULL, Reason.NAME_CONFLICT])
def test_a_start_that_can_never_come_fails_with_its_own_sentence(reason: Reason) -> None:
    never = job(attempt=attempt(stopping_since=T0, stop_reason=reason, message="the disk is full"))
    ended = outcome(never, NOTHING)
    assert (ended.phase, ended.reason, ended.fault, ended.message) == (
        Phase.FAILED, reason, "infra", "the disk is full",
    )  # fmt: skip


def test_a_full_disk_is_a_clear_failure() -> None:
    ended = outcome(job(), exited(1, reason="StoreFull"))
    assert (ended.phase, ended.reason, ended.fault) == (Phase.FAILED, Reason.STORE_FULL, "infra")


def test_a_reward_service_that_is_away_is_nobodys_error_and_is_tried_again() -> None:
    ended = outcome(job(), exited(1, reason="ServiceAway"))
    assert (ended.phase, ended.ending.reason, ended.ending.fault) == (Phase.QUEUED, Reason.SERVICE_AWAY, "infra")
    assert ended.not_before is not None and ended.worker_errors == 0


def test_an_end_without_its_outputs_is_no_success() -> None:
    ended = outcome(job(), exited(0), spoilt="output x is not whole")
    assert (ended.phase, ended.ending.reason) == (Phase.QUEUED, Reason.WORKER_ERROR)
    assert "output x is not whole" in ended.message


def test_a_word_of_success_does_not_make_a_killed_process_one() -> None:
    words = exited(0).termination
    said = job(attempt=attempt(accepted_at=T0, termination=words))
    assert outcome(said, exited(None)).ending.reason is Reason.KILLED


def test_back_off_doubles_up_to_five_minutes() -> None:
    waits = [Backoff().after(n).total_seconds() for n in range(9)]
    assert waits == [10, 10, 20, 40, 80, 160, 300, 300, 300]
    assert Backoff().after(10**9) == timedelta(seconds=300)


def test_an_attempt_ran_from_its_first_report_to_its_end() -> None:
    ended = outcome(job(ran_for=5.0), replace(exited(137), ended_at=at(30)), seconds=1000)
    assert (ended.ran_for, ended.ended_at) == (35.0, at(30))
    never = outcome(job(Phase.STARTING), exited(None), seconds=1000)
    assert never.ran_for == 0.0
