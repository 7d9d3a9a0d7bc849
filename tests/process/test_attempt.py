"""One attempt from its start to its end."""

from collections.abc import Callable

from tests.process.attempts import Attempt
from tests.process.listener import Listener
from worker import checkpoint


def test_an_attempt_reports_each_step_once_and_ends_well(listener: Listener, attempt: Callable[..., Attempt]) -> None:
    job = attempt(stage={"steps": 20}, checkpoint={"every_steps": 8}).start()
    assert job.wait() == 0
    assert [m.step for m in listener.metrics if m.name == "train/loss"] == list(range(1, 21))
    assert [c.step for c in listener.checkpoints] == [8, 16]
    assert listener.finishes[-1].outcome == "succeeded"
    assert listener.accepted[0].activity == "loading"
    assert job.termination().exit_code == 0
    assert job.termination().undelivered == 0
    assert job.termination().step == 20
    found, damaged = checkpoint.newest_whole(job.own.parent)
    assert found is not None
    assert (found.step, damaged) == (16, [])
    assert not job.alive()
    assert (job.folder / "lock").read_text().strip() == str(job.pid)


def test_what_comes_before_a_checkpoint_is_told_while_that_is_written(
    listener: Listener, attempt: Callable[..., Attempt]
) -> None:
    settings = {"steps": 6, "checkpoint_bytes": 50_000_000}
    assert attempt(stage=settings, checkpoint={"every_steps": 3}).start().wait() == 0
    saving = next(report for report in listener.accepted if report.activity == "saving")
    assert not saving.checkpoints
    told = [m.step for r in listener.accepted[: listener.accepted.index(saving) + 1] for m in r.metrics]
    assert set(told) == {1, 2, 3}


def test_the_ranks_of_a_machine_do_the_same_steps(listener: Listener, attempt: Callable[..., Attempt]) -> None:
    job = attempt(stage={"steps": 10}, checkpoint={"every_steps": 5}, resources={"per_node": 3}).start()
    assert job.wait() == 0
    states = [job.state_of(10, rank) for rank in range(3)]
    assert states[0] == states[1] == states[2]
    assert [m.step for m in listener.metrics if m.name == "train/loss"] == list(range(1, 11))
