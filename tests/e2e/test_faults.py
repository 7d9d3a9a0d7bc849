"""Faults, with the real server, operator and worker processes that rehearse: nothing is lost, and nothing doubled."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client import Unreachable
from client.records import Job
from tests.e2e.plane import ControlPlane, control_plane, wait_until

LOSS = "train/loss"


def rehearsal(steps: int = 20, *, fault: dict[str, Any] | None = None, ranks: int = 1, **fields: Any) -> dict[str, Any]:
    """A job of `steps` tenths of a second, saved every 4 steps."""
    stage = {"type": "rehearse", "steps": steps, "seconds_per_step": 0.1, **({"fault": fault} if fault else {})}
    return {
        "stage": stage, "checkpoint": {"every_steps": 4, "grace": "20s"}, "resources": {"per_node": ranks}, **fields,
    }  # fmt: skip


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane that the test may kill, with a short back-off."""
    with control_plane(tmp_path / "data", LOCAL_JOBS="2", BACK_OFF="0.3") as running:
        yield running


def waiting(plane: ControlPlane, job: str) -> list[Path]:
    """The reports that nobody has answered yet: they wait in the spool of the job's first attempt."""
    return list((plane.data / "store" / "jobs" / job / "a1" / "spool").glob("*.json"))


def read(plane: ControlPlane, call: Callable[[], Any]) -> Any:
    """What the control plane answers; None while it is not up."""
    try:
        return call()
    except Unreachable:
        return None


def comes_to(plane: ControlPlane, job: str, *phases: str, attempt: int | None = None, seconds: float = 120) -> Job:
    """The job once it is in one of `phases`."""

    def there() -> Job | None:
        found: Job | None = read(plane, lambda: plane.client.jobs.get(job))
        return found if found and found.phase in phases and attempt in (None, found.attempt) else None

    return wait_until(there, seconds=seconds, what=f"{job} in {phases}") or pytest.fail("no answer")


def reaches_step(plane: ControlPlane, job: str, step: int, attempt: int = 1) -> None:
    """Returns once the job's progress is past `step`, in its attempt `attempt` or a later one."""

    def there() -> bool:
        found = plane.client.jobs.get(job)
        return found.attempt >= attempt and found.progress is not None and found.progress.step >= step

    wait_until(there, seconds=120, what=f"step {step} of {job}")


def curve(plane: ControlPlane, job: str) -> list[tuple[int, float]]:
    """The losses that count, by step. Fails the test where a point is doubled."""
    points = [point for point in plane.client.jobs.metrics(job) if point.name == LOSS]
    assert max(Counter(point.step for point in points).values(), default=1) == 1, "a point is doubled"
    return sorted((point.step, point.value) for point in points)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[tuple[int, float]]]:
    """The losses of rehearsals that nothing happens to, by their number of steps."""
    with control_plane(tmp_path_factory.mktemp("unbroken"), LOCAL_JOBS="2") as plane:
        jobs = {steps: plane.client.jobs.create(rehearsal(steps)).id for steps in (20, 40)}
        for job in jobs.values():
            comes_to(plane, job, "succeeded")
        return {steps: curve(plane, job) for steps, job in jobs.items()}


def killed_at_random(
    plane: ControlPlane, expected: list[tuple[int, float]], *, jobs: int, kills: int, seed: int
) -> None:
    """Kills the control plane again and again while it runs a batch; every acknowledged job ends as if it had not."""
    chance = random.Random(seed)
    posted: list[str] = []
    for kill in range(kills):
        for _ in range(jobs // kills + (kill < jobs % kills)):
            posted.append(plane.client.jobs.create(rehearsal()).id)
        time.sleep(chance.uniform(0.0, 2.0))
        plane.kill()
        time.sleep(chance.uniform(0.0, 1.0))
        plane.start()
    for job in posted:
        ended = comes_to(plane, job, "succeeded", "failed", seconds=300)
        assert (ended.phase, ended.attempt) == ("succeeded", 1), f"seed {seed}: {ended.message}"
        assert curve(plane, job) == expected, f"seed {seed}"
        numbers = [event.number for event in plane.client.jobs.events(job)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(plane.client.jobs.attempts(job)) == 1


def test_a_control_plane_killed_at_random_loses_no_job_doubles_no_point_and_runs_none_twice(
    mortal: ControlPlane, unbroken: dict[int, list[tuple[int, float]]]
) -> None:
    killed_at_random(mortal, unbroken[20], jobs=4, kills=3, seed=time.time_ns())


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_a_control_plane_killed_at_random_through_a_long_batch(
    mortal: ControlPlane, unbroken: dict[int, list[tuple[int, float]]], seed: int
) -> None:
    killed_at_random(mortal, unbroken[20], jobs=20, kills=12, seed=seed)


def test_every_report_arrives_after_a_control_plane_that_was_stopped_for_a_while(
    mortal: ControlPlane, unbroken: dict[int, list[tuple[int, float]]]
) -> None:
    job = mortal.client.jobs.create(rehearsal(40)).id
    reaches_step(mortal, job, 5)
    workers = mortal.attempt_pids(job)
    assert mortal.stop() == 0
    # Its ranks may have come to their end by themselves; the launcher has their last reports to tell.
    assert {*mortal.attempt_pids(job)} & {*workers}, "a stop ends no worker"
    wait_until(lambda: waiting(mortal, job), what="a report that waits on disk")
    mortal.start()
    ended = comes_to(mortal, job, "succeeded")
    assert ended.attempt == 1
    assert curve(mortal, job) == unbroken[40]


def test_the_outcome_is_known_and_no_report_lost_after_the_worker_ended_unheard(
    mortal: ControlPlane, unbroken: dict[int, list[tuple[int, float]]]
) -> None:
    job = mortal.client.jobs.create(rehearsal(20)).id
    reaches_step(mortal, job, 5)
    mortal.kill()
    # It tries to deliver for a minute.
    wait_until(lambda: not mortal.attempt_pids(job), seconds=120, what="the end of the worker")
    mortal.start()
    ended = comes_to(mortal, job, "succeeded")
    assert ended.attempt == 1
    assert curve(mortal, job) == unbroken[20]
    assert [event.type for event in mortal.client.jobs.events(job) if event.type == "ReportsLost"] == []


def test_an_older_attempt_that_was_frozen_before_its_first_report_writes_nothing_when_it_wakes(
    mortal: ControlPlane, tmp_path: Path
) -> None:
    job = mortal.client.jobs.create(rehearsal(20, fault={"step": 6, "kind": "killed", "attempt": 1})).id
    # A second launcher of the first attempt, as on a node that cannot be reached: frozen before its first instruction.
    original, copy = mortal.data / "attempts" / f"{job}-a1", tmp_path / "copy"
    wait_until(lambda: (original / "spec.json").exists() and (original / "token").exists(), what="the first attempt")
    shutil.copytree(original, copy, ignore=shutil.ignore_patterns("lock", "exit.json", ".tmp-*", "*.log"))
    order = (copy / "spec.json").read_text().replace(str(original), str(copy))
    (copy / "spec.json").write_text(order)
    with (copy / "out.log").open("wb") as log:
        frozen = subprocess.Popen(
            [sys.executable, "-m", "worker", "--order", str(copy / "spec.json")],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        frozen.send_signal(signal.SIGSTOP)
        ended = comes_to(mortal, job, "succeeded")
        assert ended.attempt == 2
        spools = mortal.data / "store" / "jobs" / job
        wait_until(lambda: not list(spools.glob("*/spool")), what="the end of tidying up")
        before = everything(mortal, job)
        frozen.send_signal(signal.SIGCONT)
        assert frozen.wait(timeout=60) != 0
        assert everything(mortal, job) == before
    finally:
        if frozen.poll() is None:
            os.killpg(frozen.pid, signal.SIGKILL)
            frozen.wait()
    assert not (copy / "exit.json").exists()


def everything(plane: ControlPlane, job: str) -> Any:
    """All that is stored of a job, in files and rows."""
    folder = plane.data / "store" / "jobs" / job
    files = {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}
    jobs = plane.client.jobs
    return files, jobs.get(job), jobs.attempts(job), jobs.events(job), jobs.metrics(job, superseded=True)


def test_a_frozen_control_plane_is_waited_for(
    mortal: ControlPlane, unbroken: dict[int, list[tuple[int, float]]]
) -> None:
    job = mortal.client.jobs.create(rehearsal(20)).id
    reaches_step(mortal, job, 3)
    mortal.freeze()
    wait_until(lambda: waiting(mortal, job), what="a report that waits on disk")
    mortal.thaw()
    ended = comes_to(mortal, job, "succeeded")
    assert ended.attempt == 1
    assert curve(mortal, job) == unbroken[20]


def test_a_second_control_plane_on_the_same_data_refuses_and_names_the_first(mortal: ControlPlane) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "api", "--port", "0", "--data", str(mortal.data)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert "is in use by process" in second.stderr
