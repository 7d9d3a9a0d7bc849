"""What a person may rely on, wherever attempts run: one suite, for processes of one machine and for Kubernetes."""

import os
import signal
from typing import Any

import pytest

from client.records import Job
from tests.behaviour.conftest import Place
from tests.e2e.plane import story, wait_until
from tests.kubernetes.processes import launcher, ranks
from tests.kubernetes.sidelong import Cases

# At 0.1 s a step: long enough that a job still runs once a busy machine has heard that it does.
STEPS = 120
Curve = list[tuple[int, float]]
case = Cases()


def rehearsal(steps: int = STEPS, *, fault: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A job of `steps` tenths of a second on two ranks, saved every 4 steps."""
    stage = {"type": "rehearse", "steps": steps, "seconds_per_step": 0.1, **({"fault": fault} if fault else {})}
    resources = {"per_node": 2, "cpu": "100m", "memory": "256Mi"}
    return {"stage": stage, "checkpoint": {"every_steps": 4, "grace": "30s"}, "resources": resources, **fields}


def comes_to(place: Place, job: str, *phases: str) -> Job:
    """The job, once it is in one of the phases."""

    def there() -> Job | None:
        found = place.client.jobs.get(job)
        return found if found.phase in phases else None

    return wait_until(there, seconds=180, what=f"{job} in {phases}") or pytest.fail("never")


def begun(place: Place, **fields: Any) -> str:
    """A job that has saved, and made some steps more."""
    job = place.client.jobs.create(rehearsal(**fields)).id

    def there() -> bool:
        progress = place.client.jobs.get(job).progress
        return progress is not None and progress.step >= 6

    wait_until(there, seconds=180, what=f"step 6 of {job}")
    return job


def curve(place: Place, job: str) -> Curve:
    """The losses that count, by step."""
    return [(point.step, point.value) for point in place.client.jobs.metrics(job, name="train/loss")]


def ends(place: Place, job: str, phase: str, reason: str, fault: str | None, attempts: int) -> None:
    """The job comes to an end, which is this one."""
    ended = comes_to(place, job, "succeeded", "failed", "cancelled")
    found = (ended.phase, ended.reason, ended.fault, ended.attempt)
    assert found == (phase, reason, fault, attempts), story(place.client, job)


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> Curve:
    """The losses of a job that nothing happens to; all cases have begun with it."""
    case.begin(place)
    job = place.client.jobs.create(rehearsal()).id
    ends(place, job, "succeeded", "Finished", None, 1)
    return curve(place, job)


@case
def its_events_tell_its_life(place: Place) -> str | None:
    job = place.client.jobs.create(rehearsal(5)).id
    ends(place, job, "succeeded", "Finished", None, 1)
    told = [event.type for event in place.client.jobs.events(job)]
    life = [kind for kind in told if kind in ("Created", "Starting", "Running", "Finishing", "Succeeded")]
    assert life == ["Created", "Starting", "Running", "Finishing", "Succeeded"]
    return None


@case
def its_logs_are_seen_while_it_runs_and_kept_afterwards(place: Place) -> str | None:
    job = begun(place)
    assert [line.rank for line in place.client.jobs.logs(job)] == [0, 1]
    ends(place, job, "succeeded", "Finished", None, 1)
    wait_until(lambda: not any(name.endswith(f"{job}-a1") for name in place.left()), what="the end of its objects")
    assert [line.rank for line in place.client.jobs.logs(job)] == [0, 1]
    return None


@case
def it_is_paused_and_resumed(place: Place) -> str | None:
    job = begun(place)
    place.client.jobs.pause(job)
    assert comes_to(place, job, "paused").reason == "PausedByUser"
    saved = max(checkpoint.step for checkpoint in place.client.jobs.checkpoints(job))
    place.client.jobs.resume(job)
    ends(place, job, "succeeded", "Finished", None, 2)
    assert place.client.jobs.attempts(job)[1].resumed_from == saved
    return job


@case
def it_is_cancelled(place: Place) -> str | None:
    job = begun(place)
    place.client.jobs.cancel(job)
    ends(place, job, "cancelled", "CancelledByUser", None, 1)
    return None


@case
def a_rank_is_killed(place: Place) -> str | None:
    job = begun(place)
    os.kill(ranks(job)[1], signal.SIGKILL)
    ends(place, job, "succeeded", "Finished", None, 2)
    first = place.client.jobs.attempts(job)[0]
    assert (first.reason, first.fault, first.exit_code) == ("Killed", "infra", 137)
    return job


@case
def its_launcher_is_killed(place: Place) -> str | None:
    job = begun(place)
    os.kill(launcher(job, 0), signal.SIGKILL)
    ends(place, job, "succeeded", "Finished", None, 2)
    assert place.client.jobs.attempts(job)[0].reason == "Killed"
    return job


@case
def its_launcher_is_told_to_stop_by_somebody(place: Place) -> str | None:
    job = begun(place)
    os.kill(launcher(job, 0), signal.SIGTERM)
    ends(place, job, "succeeded", "Finished", None, 2)
    assert place.client.jobs.attempts(job)[0].reason == "Preempted"
    return job


@case
def a_rank_stands_still(place: Place) -> str | None:
    job = begun(place, limits={"stall": "25s"})
    os.kill(ranks(job)[1], signal.SIGSTOP)
    ends(place, job, "succeeded", "Finished", None, 2)
    assert place.client.jobs.attempts(job)[0].reason == "Stalled"
    return job


@case
def its_worker_raises_twice(place: Place) -> str | None:
    job = place.client.jobs.create(rehearsal(fault={"step": 3, "kind": "error"})).id
    ends(place, job, "failed", "WorkerError", "system", 2)
    assert "a planned error" in place.client.jobs.get(job).message
    return None


@case
def its_loss_diverges(place: Place) -> str | None:
    job = place.client.jobs.create(rehearsal(fault={"step": 6, "kind": "diverged"})).id
    ends(place, job, "failed", "Diverged", "user", 1)
    return None


@case
def its_attempts_save_nothing_new(place: Place) -> str | None:
    job = place.client.jobs.create(rehearsal(fault={"step": 6, "kind": "killed"}, retry={"max_attempts": 1})).id
    ends(place, job, "failed", "Killed", "infra", 2)
    assert [attempt.resumed_from for attempt in place.client.jobs.attempts(job)] == [None, 4]
    return None


@case
def it_ran_for_too_long(place: Place) -> str | None:
    job = place.client.jobs.create(rehearsal(10_000, limits={"wall_clock": "3s"})).id
    ends(place, job, "failed", "DeadlineExceeded", "user", 1)
    assert place.client.jobs.checkpoints(job)
    return None


@case
def it_is_deleted(place: Place) -> str | None:
    job = place.client.jobs.create(rehearsal(5)).id
    ends(place, job, "succeeded", "Finished", None, 1)
    place.client.jobs.delete(job)
    wait_until(lambda: not (place.store / "jobs" / job).exists(), what="the end of its files")
    return None


@pytest.mark.parametrize("name", case.names)
def test_it_holds_when(place: Place, undisturbed: Curve, name: str) -> None:
    job = case.result(name)
    if job is not None:
        assert curve(place, job) == undisturbed


def test_a_control_plane_that_is_killed_finds_its_attempts_again_and_nothing_is_left(
    place: Place, undisturbed: Curve
) -> None:
    job = begun(place)
    place.kill()
    place.start()
    ends(place, job, "succeeded", "Finished", None, 1)
    assert curve(place, job) == undisturbed
    wait_until(lambda: not place.left(), what="the end of all objects")
