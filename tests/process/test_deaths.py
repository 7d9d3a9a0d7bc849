"""Processes that are killed, stopped, frozen and woken, and failures of every kind."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.disks import small_disk
from tests.process.attempts import Attempt, until
from tests.process.listener import Listener
from worker import checkpoint

MakeAttempt = Callable[..., Attempt]
LONG = {"steps": 100_000}
NEVER = {"every_steps": 1_000_000}


def whole(job: Attempt) -> list[int]:
    """The steps of the checkpoints in an attempt's folder; all must be whole."""
    found, damaged = checkpoint.newest_whole(job.own.parent)
    assert damaged == []
    steps = sorted(int(path.name[5:]) for path in job.own.glob("checkpoints/step-*"))
    assert not steps or (found is not None and found.step == steps[-1])
    return steps


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_takes_the_others_with_it_and_the_attempt_is_killed(
    listener: Listener, attempt: MakeAttempt, victim: int
) -> None:
    job = attempt(stage=LONG, resources={"per_node": 2}, checkpoint={"every_steps": 10}).start()
    until(lambda: listener.checkpoints)
    ranks = job.ranks()
    ranks[victim].kill()
    assert job.wait() == 137
    assert gone(ranks)
    assert job.termination().reason == "Killed"
    assert f"rank {victim} was killed by SIGKILL" in job.termination().message
    assert listener.finishes[-1].reason == "Killed"
    assert whole(job)


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_do_not_outlive_their_launcher(listener: Listener, attempt: MakeAttempt, ranks: int) -> None:
    job = attempt(stage=LONG, resources={"per_node": ranks}).start()
    until(lambda: listener.step > 0)
    processes = job.ranks()
    assert len(processes) == ranks
    job.signal(signal.SIGKILL)
    until(lambda: gone(processes), deadline=10)
    until(lambda: not job.alive(), deadline=10)
    assert not (job.folder / "exit.json").exists()


def test_ranks_that_still_load_do_not_outlive_their_launcher(attempt: MakeAttempt) -> None:
    job = attempt(stage=LONG, resources={"per_node": 2}).start()
    processes = until(lambda: job.ranks() if len(job.ranks()) == 2 else [])
    job.signal(signal.SIGKILL)
    until(lambda: gone(processes), deadline=10)
    until(lambda: not job.alive(), deadline=10)


def test_a_signal_saves_the_step_that_all_ranks_are_at(listener: Listener, attempt: MakeAttempt) -> None:
    job = attempt(stage=LONG, resources={"per_node": 3}, checkpoint=NEVER).start()
    until(lambda: listener.step > 0)
    job.signal(signal.SIGTERM)
    assert job.wait() == 143
    (step,) = whole(job)
    assert job.termination().step == step
    assert {job.state_of(step, rank)["step"] for rank in range(3)} == {step}
    assert max(listener.losses) == step
    assert [c.step for c in listener.checkpoints] == [step]
    assert listener.finishes[-1].outcome == "stopped"


def test_a_signal_to_the_whole_group_is_the_launchers_to_answer(listener: Listener, attempt: MakeAttempt) -> None:
    job = attempt(stage=LONG, resources={"per_node": 2}, checkpoint=NEVER).start()
    until(lambda: listener.step > 0)
    os.killpg(job.pid, signal.SIGTERM)
    assert job.wait() == 143
    assert len(whole(job)) == 1


def test_a_second_signal_changes_nothing(listener: Listener, attempt: MakeAttempt) -> None:
    job = attempt(stage=LONG | {"checkpoint_bytes": 30_000_000}, checkpoint=NEVER).start()
    until(lambda: listener.step > 0)
    job.signal(signal.SIGTERM)
    until(lambda: list(job.own.rglob(".tmp-*")) or list(job.own.rglob("step-*")))
    job.signal(signal.SIGTERM)
    job.signal(signal.SIGINT)
    assert job.wait() == 143
    assert len(whole(job)) == 1


def test_a_signal_while_it_saves_ends_after_that_checkpoint(listener: Listener, attempt: MakeAttempt) -> None:
    job = attempt(stage=LONG | {"checkpoint_bytes": 50_000_000}, checkpoint={"every_steps": 20}).start()
    until(lambda: list(job.own.rglob(".tmp-step*")))
    job.signal(signal.SIGTERM)
    assert job.wait() == 143
    steps = whole(job)
    assert steps[0] == 20
    assert not list(job.own.rglob(".tmp-*"))


def test_a_signal_with_a_wish_to_cancel_saves_nothing(listener: Listener, attempt: MakeAttempt) -> None:
    job = attempt(stage=LONG, checkpoint=NEVER).start()
    until(lambda: listener.step > 0)
    listener.desired = "cancel"
    job.signal(signal.SIGTERM)
    assert job.wait() == 143
    assert whole(job) == []


def test_a_signal_with_the_control_plane_away_saves(listener: Listener, attempt: MakeAttempt) -> None:
    job = attempt(stage=LONG, checkpoint=NEVER | {"grace": "10s"}).start()
    until(lambda: listener.step > 0)
    listener.stop()
    job.signal(signal.SIGTERM)
    assert job.wait() == 143
    assert len(whole(job)) == 1
    assert job.termination().outcome == "stopped"


def test_a_signal_before_the_first_answer_ends_it_with_nothing_touched(
    listener: Listener, attempt: MakeAttempt
) -> None:
    listener.status = lambda report: 503
    job = attempt(stage=LONG).start()
    until(lambda: listener.seen and job.ranks())
    job.signal(signal.SIGTERM)
    assert job.wait() == 143
    assert list(job.store.iterdir()) == []
    assert job.termination().outcome == "stopped"


def test_a_signal_at_any_moment_of_its_start_ends_it(listener: Listener, attempt: MakeAttempt) -> None:
    for number in range(1, 7):
        job = attempt(number, stage=LONG, checkpoint=NEVER).start()
        ends = time.monotonic() + 0.15 * number
        until(lambda ends=ends: time.monotonic() > ends)
        job.signal(signal.SIGTERM)
        assert job.wait() in (143, -signal.SIGTERM)
        assert not job.alive()
        whole(job)


def test_a_rank_that_does_not_save_within_the_grace_is_killed(listener: Listener, attempt: MakeAttempt) -> None:
    job = attempt(stage=LONG, checkpoint=NEVER | {"grace": "3s"}).start()
    until(lambda: listener.step > 0)
    job.ranks()[0].suspend()
    job.signal(signal.SIGTERM)
    assert job.wait() == 143
    assert "grace" in job.termination().message
    assert whole(job) == []


def test_a_frozen_attempt_that_is_woken_after_its_replacement_changes_nothing(
    listener: Listener, attempt: MakeAttempt
) -> None:
    listener.status = lambda report: 503
    frozen = attempt(1, stage=LONG, resources={"per_node": 2}).start()
    until(lambda: len(frozen.ranks()) == 2 and listener.seen)
    os.killpg(frozen.pid, signal.SIGSTOP)
    listener.status = lambda report: 200
    replacement = attempt(2, stage={"steps": 30}, checkpoint={"every_steps": 10}).start()
    assert replacement.wait() == 0
    before = sorted((str(p), p.stat().st_mtime_ns) for p in frozen.store.rglob("*"))
    accepted = len(listener.accepted)
    listener.status = lambda report: 409
    os.killpg(frozen.pid, signal.SIGCONT)
    assert frozen.wait() == 143
    assert sorted((str(p), p.stat().st_mtime_ns) for p in frozen.store.rglob("*")) == before
    assert not (frozen.folder / "exit.json").exists()
    assert len(listener.accepted) == accepted
    assert not frozen.alive()


def test_a_frozen_attempt_goes_on_where_it_was_when_it_is_woken(listener: Listener, attempt: MakeAttempt) -> None:
    job = attempt(stage={"steps": 400}, resources={"per_node": 2}).start()
    until(lambda: listener.step > 0)
    os.killpg(job.pid, signal.SIGSTOP)
    # Longer than the listener keeps an idle connection, so that the next report meets a dead one.
    frozen_until = time.monotonic() + 6
    until(lambda: time.monotonic() > frozen_until)
    os.killpg(job.pid, signal.SIGCONT)
    assert job.wait() == 0
    assert [m.step for m in listener.metrics if m.name == "train/loss"] == list(range(1, 401))


@pytest.mark.parametrize(
    ("kind", "code", "reason"),
    [
        ("error", 1, "WorkerError"),
        ("killed", 137, "Killed"),
        ("diverged", 4, "Diverged"),
        ("out_of_memory", 5, "OutOfMemory"),
        ("bad_data", 3, "InvalidData"),
    ],
)
def test_each_failure_has_its_code_and_its_reason_and_the_last_checkpoint_stays(
    listener: Listener, attempt: MakeAttempt, kind: str, code: int, reason: str
) -> None:
    stage = {"steps": 30, "fault": {"step": 25, "kind": kind}}
    job = attempt(stage=stage, resources={"per_node": 2}, checkpoint={"every_steps": 10}).start()
    assert job.wait() == code
    assert job.termination().exit_code == code
    assert job.termination().reason == reason == listener.finishes[-1].reason
    assert whole(job) == [10, 20]
    assert max(listener.losses) == 24
    if kind == "error":
        assert "RuntimeError: a planned error" in job.termination().message
        assert "Traceback" in job.log(rank=1)


def test_a_stalled_attempt_reports_without_progress_and_ends_when_asked(
    listener: Listener, attempt: MakeAttempt
) -> None:
    job = attempt(stage={"steps": 30, "fault": {"step": 5, "kind": "stall"}}, checkpoint=NEVER).start()
    until(lambda: listener.step == 4)
    heard = len(listener.accepted)
    until(lambda: len(listener.accepted) >= heard + 3)
    assert len({report.progress.mark for report in listener.accepted[heard:]}) == 1
    job.signal(signal.SIGTERM)
    assert job.wait() == 143
    assert whole(job) == [4]


@pytest.fixture
def small_store(tmp_path: Path) -> Iterator[Path]:
    """The store on a real file system of 4 MiB."""
    with small_disk(tmp_path / "store", "4m") as store:
        yield store


def test_a_full_disk_is_a_clear_failure_and_the_older_checkpoint_stays_whole(
    small_store: Path, listener: Listener, attempt: MakeAttempt
) -> None:
    stage = {"steps": 30, "checkpoint_bytes": 1_500_000}
    job = attempt(stage=stage, checkpoint={"every_steps": 5}, resources={"per_node": 2}).start()
    assert job.wait() == 1
    assert job.termination().reason == "StoreFull"
    assert "no room" in job.termination().message
    assert whole(job) == [5, 10]
    assert listener.finishes[-1].reason == "StoreFull"
    assert [c.step for c in listener.checkpoints] == [5, 10]


def test_reports_outlive_an_absent_control_plane_and_a_full_disk(
    small_store: Path, listener: Listener, attempt: MakeAttempt
) -> None:
    job = attempt(stage={"steps": 500}, checkpoint=NEVER).start()
    until(lambda: listener.step > 0)
    (small_store / "ballast").write_bytes(b"")
    with pytest.raises(OSError, match="No space"), (small_store / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    listener.status = lambda report: 503
    heard = len(listener.seen)
    until(lambda: len(listener.seen) >= heard + 2)
    assert job.spool == []
    listener.status = lambda report: 200
    assert job.wait() == 0
    assert [m.step for m in listener.metrics if m.name == "train/loss"] == list(range(1, 501))
