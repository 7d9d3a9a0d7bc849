"""What a worker does at each answer of the control plane, and at none."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.process.attempts import Attempt, until
from tests.process.listener import HANG, Listener
from worker.contract.protocol import Report
from worker.reporter import DRAIN

MakeAttempt = Callable[..., Attempt]
LONG = {"steps": 100_000}
NEVER = {"every_steps": 1_000_000}


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """All that lies in a folder, with its size and time of change."""
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


def refuse_once(status: int, when: Callable[[Report], bool]) -> Callable[[Report], int]:
    """Answers `status` to the first report for which `when` holds, and 200 to all others."""
    refused: list[int] = []

    def answer(report: Report) -> int:
        if (not refused and when(report)) or report.seq in refused:
            refused.append(report.seq)
            return status
        return 200

    return answer


@pytest.mark.parametrize("status", [409, 410])
def test_an_attempt_that_is_over_before_it_began_touches_nothing(
    listener: Listener, attempt: MakeAttempt, status: int
) -> None:
    listener.status = lambda report: status
    job = attempt(2)
    (job.store / "jobs").mkdir()
    before = tree(job.store)
    assert job.start().wait() == 143
    assert tree(job.store) == before
    assert not (job.folder / "exit.json").exists()
    assert len(listener.seen) == 1
    assert not job.alive()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_ends_the_attempt_with_a_reason_before_it_began(
    listener: Listener, attempt: MakeAttempt, status: int
) -> None:
    listener.status = lambda report: status
    job = attempt()
    assert job.start().wait() == 1
    assert tree(job.store) == {}
    assert "refused" in job.termination().message


def test_a_token_that_was_changed_is_read_again(listener: Listener, attempt: MakeAttempt) -> None:
    job = attempt(stage=LONG).start()
    until(lambda: listener.step > 0)
    listener.token = "another-token"
    (job.folder / "token").write_text("another-token\n")
    step = listener.step
    until(lambda: listener.step > step)
    assert listener.losses.keys() == set(range(1, listener.step + 1))


def test_each_launcher_names_itself_in_all_its_reports(listener: Listener, attempt: MakeAttempt) -> None:
    names = []
    for number in (1, 2):
        # The first report, its repetition, and what is sent from the spool: nobody answers for a while.
        listener.status = lambda report: 503 if len(listener.seen) in (1, 3, 4) else 200
        listener.seen.clear()
        assert attempt(number, stage={"steps": 3}).start().wait() == 0
        [name] = {report.launcher for report in listener.seen}
        assert name is not None
        names.append(name)
    assert names[0] != names[1]


def test_an_unanswered_attempt_waits_and_touches_nothing(listener: Listener, attempt: MakeAttempt) -> None:
    listener.status = lambda report: 503
    job = attempt(stage={"steps": 3}).start()
    until(lambda: len(listener.seen) >= 5)
    assert tree(job.store) == {}
    assert len(job.ranks()) == 1
    listener.status = lambda report: 200
    assert job.wait() == 0
    assert listener.losses.keys() == {1, 2, 3}


def test_an_attempt_whose_control_plane_is_not_there_yet_waits_for_it(attempt: MakeAttempt, tmp_path: Path) -> None:
    listener = Listener(tmp_path / "worker-url")
    job = attempt(stage={"steps": 3}).start()
    until(job.ranks)
    listener.start()
    assert job.wait() == 0
    assert listener.losses.keys() == {1, 2, 3}
    listener.stop()


@pytest.mark.parametrize("status", [500, 503, 404, 429, 302])
def test_an_answer_that_is_none_is_waited_out(listener: Listener, attempt: MakeAttempt, status: int) -> None:
    listener.status = lambda report: status if len(listener.seen) < 4 else 200
    assert attempt(stage={"steps": 3}).start().wait() == 0
    assert {report.seq for report in listener.seen[:4]} == {1}
    assert listener.losses.keys() == {1, 2, 3}


@pytest.mark.parametrize("status", [409, 410])
def test_an_attempt_that_is_over_stops_at_once_and_saves_nothing(
    listener: Listener, attempt: MakeAttempt, status: int
) -> None:
    job = attempt(stage=LONG, resources={"per_node": 2}, checkpoint=NEVER).start()
    until(lambda: listener.step > 0)
    listener.status = lambda report: status
    assert job.wait() == 143
    assert not list(job.own.rglob("step-*"))
    assert listener.finishes == []
    assert not job.alive()
    left = [metric for path in job.spool for metric in Report.model_validate_json(path.read_bytes()).metrics]
    if status == 410:
        assert left == [], "of a job that is gone nothing is wanted any more"
        return
    # What it had done by then is in the spool: the next attempt may go on from there.
    steps = listener.losses.keys() | {metric.step for metric in left if metric.name == "train/loss"}
    assert left
    assert steps == set(range(1, max(steps) + 1))


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_report_refused_as_malformed_does_not_block_those_after_it(
    listener: Listener, attempt: MakeAttempt, status: int
) -> None:
    listener.status = refuse_once(status, when=lambda report: bool(report.metrics))
    job = attempt(stage={"steps": 250}).start()
    assert job.wait() == 0
    aside = list((job.own / "spool" / "refused").iterdir())
    assert len(aside) == 1
    refused = Report.model_validate_json(aside[0].read_bytes())
    lost = {metric.step for metric in refused.metrics}
    assert listener.losses.keys() == set(range(1, 251)) - lost
    assert [event.type for event in listener.events] == ["ReportRefused"]
    assert str(status) in listener.events[0].message
    assert job.termination().undelivered == 0


@pytest.mark.parametrize("status", [500, 401, HANG])
def test_training_goes_on_while_nobody_takes_reports_and_all_of_them_arrive_in_order(
    listener: Listener, attempt: MakeAttempt, status: int
) -> None:
    job = attempt(stage={"steps": 500}, checkpoint={"every_steps": 50}).start()
    until(lambda: listener.step > 0)
    listener.status = lambda report: status
    # The job saves further on although nobody hears it, and what it reports waits on the disk.
    until(lambda: (job.own / "checkpoints" / "step-000000300").exists() and job.spool)
    listener.status = lambda report: 200
    assert job.wait() == 0
    assert [m.step for m in listener.metrics if m.name == "train/loss"] == list(range(1, 501))
    assert [c.step for c in listener.checkpoints] == list(range(50, 501, 50))
    assert [r.seq for r in listener.accepted] == sorted({r.seq for r in listener.accepted})
    assert job.spool == []
    assert job.termination().undelivered == 0


def test_what_led_to_a_checkpoint_is_on_disk_though_the_control_plane_hangs_and_all_is_killed(
    listener: Listener, attempt: MakeAttempt
) -> None:
    job = attempt(stage=LONG, checkpoint={"every_steps": 40}).start()
    until(lambda: listener.checkpoints)
    listener.status = lambda report: HANG
    before = len(listener.seen)
    until(lambda: len(listener.seen) > before)

    def saved() -> int:
        return max(int(path.name[5:]) for path in job.own.glob("checkpoints/step-*"))

    whole = saved() + 40
    until(lambda: saved() > whole)
    job.kill_group()
    left = [Report.model_validate_json(path.read_bytes()) for path in job.spool]
    spooled = {metric.step for report in left for metric in report.metrics if metric.name == "train/loss"}
    assert listener.losses.keys() | spooled >= set(range(1, whole + 1))


def test_a_control_plane_that_comes_back_elsewhere_is_found(listener: Listener, attempt: MakeAttempt) -> None:
    job = attempt(stage={"steps": 500}).start()
    until(lambda: listener.step > 0)
    listener.stop()
    until(lambda: job.spool)
    listener.start()
    assert job.wait() == 0
    assert listener.losses.keys() == set(range(1, 501))
    assert listener.finishes[-1].outcome == "succeeded"


def test_what_cannot_be_delivered_stays_in_the_spool_and_is_counted(listener: Listener, attempt: MakeAttempt) -> None:
    # The grace bounds how long the last reports are tried; otherwise it is a minute.
    job = attempt(stage=LONG, checkpoint={"grace": "4s", "every_steps": 100_000}).start()
    until(lambda: listener.step > 0)
    known = listener.step
    listener.stop()
    job.process.terminate()  # type: ignore[union-attr]
    assert job.wait() == 143
    left = [Report.model_validate_json(path.read_bytes()) for path in job.spool]
    assert job.termination().undelivered == len(left) > 0
    saved = job.termination().step
    assert saved is not None
    steps = {metric.step for report in left for metric in report.metrics if metric.name == "train/loss"}
    assert steps == set(range(known + 1, saved + 1))
    assert [c.step for report in left for c in report.checkpoints] == [saved]


@pytest.mark.soak
def test_the_last_reports_are_tried_for_a_minute(listener: Listener, attempt: MakeAttempt) -> None:
    job = attempt(stage={"steps": 300}).start()
    until(lambda: listener.step > 0)
    listener.stop()
    until(lambda: not job.ranks())
    time.sleep(30)
    assert job.process is not None and job.process.poll() is None
    listener.start()
    assert job.wait() == 0
    assert listener.losses.keys() == set(range(1, 301))
    assert listener.finishes[-1].outcome == "succeeded"


def test_a_wish_to_pause_saves_and_a_wish_to_cancel_does_not(listener: Listener, attempt: MakeAttempt) -> None:
    paused = attempt(1, stage=LONG, checkpoint=NEVER).start()
    until(lambda: listener.step > 0)
    listener.desired = "pause"
    assert paused.wait() == 143
    assert len(list(paused.own.glob("checkpoints/step-*"))) == 1
    assert listener.finishes[-1].outcome == "stopped"

    listener.desired = "run"
    listener.accepted.clear()
    cancelled = attempt(2, stage=LONG, checkpoint=NEVER).start()
    until(lambda: listener.step > 0 and cancelled.ranks())
    until(lambda: any(report.resumed_from is not None for report in listener.accepted))
    listener.desired = "cancel"
    assert cancelled.wait() == 143
    assert not list(cancelled.own.glob("checkpoints/*"))


def test_the_heartbeat_goes_on_with_nothing_to_say(listener: Listener, attempt: MakeAttempt) -> None:
    attempt(stage={"steps": 1, "seconds_per_step": 3600}).start()
    until(lambda: len(listener.accepted) >= 4, deadline=20)
    assert not listener.metrics
    assert len({report.progress.mark for report in listener.accepted[2:]}) == 1


def test_many_messages_are_merged_into_one_report(listener: Listener, attempt: MakeAttempt) -> None:
    job = attempt(stage={"steps": 2500, "seconds_per_step": 0}, checkpoint=NEVER).start()
    assert job.wait() == 0
    assert listener.losses.keys() == set(range(1, 2501))
    assert len(listener.accepted) < 12


def test_one_that_is_done_and_only_has_reports_left_ends_well_when_it_is_told_to_stop(
    listener: Listener, attempt: MakeAttempt
) -> None:
    job = attempt(stage={"steps": 300}).start()
    until(lambda: listener.step > 0)
    listener.stop()
    until(lambda: not psutil.Process(job.pid).children())
    job.signal(signal.SIGTERM)
    # Whoever said that would kill it after its grace; by itself it would try for a minute.
    assert job.process is not None
    assert job.process.wait(timeout=DRAIN / 2) == 0
    said = job.termination()
    assert (said.outcome, said.step) == ("succeeded", 300)
    assert said.undelivered == len(job.spool) > 0
