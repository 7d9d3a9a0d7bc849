"""kill -9 of the operator at any moment: every job goes on, and none runs twice."""

import asyncio
import random
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from api.domain.job import Phase
from api.store.database import Database
from tests.operator.conftest import Plane, holders, until

ENDS = (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)


class Killed:
    """An operator process that is killed and started again on the same data."""

    def __init__(self, url: str, data: Path):
        self._command = [sys.executable, "-m", "tests.operator.serve_operator", url, str(data)]
        self._log = data / "operator.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when it is up."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=asyncio.subprocess.PIPE, stderr=log
            )
        assert self._process.stdout is not None
        assert await asyncio.wait_for(self._process.stdout.readline(), 60) == b"up\n", self._log.read_text()[-3000:]

    async def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        self._process = None

    async def close(self) -> None:
        """Ends what is still up."""
        if self._process is not None:
            await self.kill()


async def killed_at_random(url: str, database: Database, data: Path, *, jobs: int, kills: int, seed: int) -> None:
    """Posts jobs of 0.5 s, kills the operator again and again while they run, and looks at what became of them."""
    chance, ledger = random.Random(seed), data / "ledger"
    plane, operator = Plane(database, data), Killed(url, data)
    posted = [await plane.post(metadata={"seconds": "0.5", "ledger": str(ledger)}) for _ in range(jobs)]
    try:
        for _ in range(kills):
            await operator.start()
            await asyncio.sleep(chance.uniform(0.0, 0.7))
            await operator.kill()
        await operator.start()

        async def all_over() -> bool:
            return all([(await plane.job(job)).phase in ENDS for job in posted])

        await until(all_over, seconds=120)
    finally:
        await operator.close()
        await plane.wakeups.close()

    for job in posted:
        row = await plane.job(job)
        assert (row.phase, row.attempt) == (Phase.SUCCEEDED, 1), f"seed {seed}: {row.message}"
        numbers = [event.number for event in await plane.events(job)]
        assert numbers == list(range(1, len(numbers) + 1))
    begun = defaultdict(list)
    for line in ledger.read_text().splitlines():
        at, job, _, what = line.split()
        begun[job].append((int(at), what))
    assert {job: [what for _, what in sorted(lines)] for job, lines in begun.items()} == {
        job: ["begin", "end"] for job in posted
    }


async def test_an_operator_killed_at_random_loses_no_job_and_runs_none_twice(
    database_url: str, database: Database, data: Path
) -> None:
    await killed_at_random(database_url, database, data, jobs=4, kills=4, seed=time.time_ns())


@pytest.mark.soak
async def test_an_operator_killed_at_random_fifty_times(database_url: str, database: Database, data: Path) -> None:
    for seed in range(5):
        (data / "ledger").unlink(missing_ok=True)
        await killed_at_random(database_url, database, data, jobs=20, kills=10, seed=seed)


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.RUNNING, Phase.FINISHING])
async def test_an_operator_killed_in_each_phase_goes_on(
    database_url: str, database: Database, data: Path, phase: Phase
) -> None:
    plane, operator = Plane(database, data), Killed(database_url, data)
    await operator.start()
    try:
        deaf = {"deaf": "1", "ranks": "1"} if phase is Phase.FINISHING else {}
        job = await plane.post(metadata={"seconds": "600", **deaf}, checkpoint={"grace": "500ms"})
        await plane.reaches(job, Phase.STARTING)
        if phase is not Phase.STARTING:
            await plane.runs(job)
        if phase is Phase.FINISHING:
            await plane.wish(job, desired="cancel")
            await plane.reaches(job, Phase.FINISHING, Phase.CANCELLED)
        await operator.kill()
        before = holders(data)
        await operator.start()
        if phase is Phase.STARTING:
            await plane.runs(job)
        if phase is not Phase.FINISHING:
            assert set(before) <= set(holders(data)), "a restart ends no attempt"
            await plane.wish(job, desired="cancel")
        await plane.reaches(job, Phase.CANCELLED)
        assert len(await plane.attempts(job)) == 1

        async def gone() -> bool:
            return holders(data) == []

        await until(gone)
    finally:
        await operator.close()
        await plane.wakeups.close()


async def test_an_attempt_that_ended_while_nobody_was_up_has_its_outcome(
    database_url: str, database: Database, data: Path
) -> None:
    plane, operator = Plane(database, data), Killed(database_url, data)
    await operator.start()
    try:
        job = await plane.post(metadata={"seconds": "8"})
        await plane.runs(job)
        await operator.kill()

        async def ended() -> bool:
            return holders(data) == []

        await until(ended)
        assert (await plane.job(job)).phase == Phase.RUNNING
        await operator.start()
        row = await plane.reaches(job, Phase.SUCCEEDED)
        assert row.attempt == 1
        [attempt] = await plane.attempts(job)
        assert attempt.ended_at - attempt.accepted_at < row.finished_at - attempt.accepted_at
    finally:
        await operator.close()
        await plane.wakeups.close()
