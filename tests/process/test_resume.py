"""A stopped or killed attempt is gone on with exactly: the losses are those of a job that was never stopped."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.attempts import Attempt, until
from tests.process.listener import Listener

MakeAttempt = Callable[..., Attempt]
STEPS = 150
STAGE = {"steps": STEPS, "seed": 5}
CHECKPOINT = {"every_steps": 20}


@pytest.fixture
def unbroken(tmp_path: Path) -> dict[int, float]:
    """The losses of a job that is never stopped."""
    home = tmp_path / "unbroken"
    home.mkdir()
    listener = Listener(home / "worker-url")
    listener.start()
    job = Attempt(home, stage=STAGE | {"seconds_per_step": 0}, checkpoint=CHECKPOINT).start()
    assert job.wait() == 0
    listener.stop()
    assert listener.losses.keys() == set(range(1, STEPS + 1))
    return listener.losses


def saved(job: Attempt) -> int:
    """The step of the attempt's newest sealed checkpoint."""
    return max((int(path.name[5:]) for path in job.own.glob("checkpoints/step-*")), default=0)


def pause(job: Attempt) -> int:
    job.signal(signal.SIGTERM)
    return job.wait()


def kill_a_rank(job: Attempt) -> int:
    job.ranks()[-1].kill()
    return job.wait()


def kill_the_launcher(job: Attempt) -> int:
    job.signal(signal.SIGKILL)
    return job.wait()


@pytest.mark.parametrize(
    ("end", "code", "complete"),
    [
        pytest.param(pause, 143, True, id="paused"),
        pytest.param(kill_a_rank, 137, True, id="rank killed"),
        # What no report had carried yet goes with the launcher.
        pytest.param(kill_the_launcher, -9, False, id="launcher killed"),
    ],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_after_broken_attempts_equal_those_of_an_unbroken_one(
    listener: Listener,
    attempt: MakeAttempt,
    unbroken: dict[int, float],
    end: Callable[[Attempt], int],
    code: int,
    complete: bool,
    ranks: int,
) -> None:
    draws = random.Random(code + ranks)
    losses: dict[int, float] = {}
    newest = 0
    for number in (1, 2, 3):
        first = len(listener.accepted)
        job = attempt(number, stage=STAGE, checkpoint=CHECKPOINT, resources={"per_node": ranks}).start()
        if number < 3:
            wait_for_a_random_step(job, after=newest + 20, draws=draws)
            assert end(job) == code
            wait_for_the_lock(job)
        else:
            assert job.wait() == 0
        heard = listener.losses_since(first)
        if newest > 0:
            assert {r.resumed_from for r in listener.accepted[first:]} - {None} <= {newest}
        assert min(heard, default=newest + 1) == newest + 1
        losses |= heard
        newest = max(newest, saved(job))
    assert losses == {step: unbroken[step] for step in losses}
    if complete:
        assert losses == unbroken


def wait_for_a_random_step(job: Attempt, after: int, draws: random.Random) -> None:
    """Returns at some moment of the twenty steps that follow the checkpoint of step `after`."""
    until(lambda: saved(job) >= after)
    ends = time.monotonic() + draws.random() * 0.2
    until(lambda: time.monotonic() > ends)


def wait_for_the_lock(job: Attempt) -> None:
    until(lambda: not job.alive())


def test_a_damaged_checkpoint_is_passed_over_and_an_event_says_so(
    listener: Listener, attempt: MakeAttempt, unbroken: dict[int, float]
) -> None:
    job = attempt(1, stage=STAGE, checkpoint=CHECKPOINT).start()
    until(lambda: saved(job) >= 60)
    job.signal(signal.SIGKILL)
    job.wait()
    until(lambda: not job.alive())
    newest = saved(job)
    path = job.own / "checkpoints" / f"step-{newest:09d}" / "rank-0.json"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    listener.accepted.clear()
    assert attempt(2, stage=STAGE, checkpoint=CHECKPOINT).start().wait() == 0
    assert [(event.type, event.level) for event in listener.events] == [
        ("CheckpointDamaged", "warning"),
        ("Resumed", "info"),
    ]
    assert f"step {newest} " in listener.events[0].message
    assert "rank-0.json" in listener.events[0].message
    assert min(listener.losses) == newest - 20 + 1
    assert listener.losses == {step: unbroken[step] for step in range(newest - 19, STEPS + 1)}


def test_a_resume_after_the_last_step_ends_well_without_a_step(listener: Listener, attempt: MakeAttempt) -> None:
    assert attempt(1, stage={"steps": 20}, checkpoint={"every_steps": 20}).start().wait() == 0
    listener.accepted.clear()
    assert attempt(2, stage={"steps": 20}, checkpoint={"every_steps": 20}).start().wait() == 0
    assert listener.losses == {}
    assert listener.accepted[-1].resumed_from == 20


def test_what_an_older_attempt_left_unfinished_is_not_read_and_not_written(
    listener: Listener, attempt: MakeAttempt
) -> None:
    first = attempt(1, stage={"steps": 30}, checkpoint={"every_steps": 10}).start()
    assert first.wait() == 0
    shutil.copytree(first.own / "checkpoints" / "step-000000030", first.own / "checkpoints" / ".tmp-step-000000040")
    before = sorted((str(p), p.stat().st_mtime_ns) for p in first.own.rglob("*"))
    assert attempt(2, stage={"steps": 40}, checkpoint={"every_steps": 10}).start().wait() == 0
    assert sorted((str(p), p.stat().st_mtime_ns) for p in first.own.rglob("*")) == before
