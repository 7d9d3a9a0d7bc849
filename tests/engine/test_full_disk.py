"""A store that is full: a save that does not fit fails by its name, and takes no older checkpoint with it."""

import subprocess
from pathlib import Path

import pytest

from tests.disks import small_disk
from tests.engine import jobs
from tests.engine.jobs import Ended, Job
from tests.engine.pool import Pool
from worker import checkpoint

PAGE = 4096


def attempt(rank: int, world: int, job: Job, number: int) -> Ended:
    """`jobs.attempt`; what a library raises has the name that `worker.run` gives it."""
    from worker.run import failure_of

    try:
        return jobs.attempt(rank, world, job, number)
    except Exception as error:
        failure = failure_of(error)
        return Ended(failure.reason, failure.message, [], [])


def job(store: Path, zero: int) -> Job:
    made = jobs.spec(stage__steps=4, checkpoint={"every_steps": 2}, deepspeed__zero=zero)
    return Job(store, made, jobs.dialogues(7))


def pages_of(folder: Path) -> int:
    """Pages that a file system of pages needs for it."""
    return sum(-(-path.stat().st_size // PAGE) if path.is_file() else 1 for path in [folder, *folder.rglob("*")])


@pytest.mark.parametrize("zero", [0, 2])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.75])
def test_a_save_that_does_not_fit_leaves_the_older_checkpoint_whole(
    one: Pool, tmp_path: Path, zero: int, share: float
) -> None:
    roomy = job(tmp_path / "roomy", zero)
    whole = one.run(attempt, roomy, 1)[0]
    assert (whole.outcome, whole.checkpoints) == ("Finished", [2, 4])
    a_save = pages_of(next((roomy.store / "jobs" / roomy.name / "a1" / "checkpoints").glob("step-*2")))
    rest = pages_of(roomy.store / "files") + 8
    # Room for one save, and for a share of the next.
    with small_disk(tmp_path / "small", f"{int(a_save * (1 + share) + rest) * PAGE}") as store:
        small = job(store, zero)
        failed = one.run(attempt, small, 1)[0]
        assert failed.outcome == "StoreFull", failed.message
        assert "no room left" in failed.message
        found, damaged = checkpoint.newest_whole(store / "jobs" / small.name)
        assert found is not None
        assert (found.step, damaged) == (2, [])
        # What half a save took is given back, and with room the job goes on.
        assert [path.name for path in (found.path.parent).iterdir()] == [found.path.name]
        subprocess.run(["mount", "-o", f"remount,size={a_save * PAGE * 8}", str(store)], check=True)
        resumed = one.run(attempt, small, 2)[0]
        assert (resumed.outcome, resumed.resumed_from) == ("Finished", 2), resumed.message
