"""Databases of both kinds, a local cluster with a small launcher, and operators on them."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from api.domain.decide import Rules
from api.domain.job import Desired, Phase
from api.domain.outcome import Backoff
from api.folder import FolderStore
from api.operator.leader import Leader
from api.operator.local import LocalCluster
from api.operator.reconciler import Operator, Pace
from api.store import reports
from api.store.database import Database, utcnow
from api.store.ids import new_id
from api.store.tables import AttemptRow, EventRow, JobRow
from api.store.wakeups import Wakeups
from api.tokens import Tokens
from tests.holders import holders as of
from tests.operator.builders import spec
from worker.contract.protocol import Report

STAND_IN = (sys.executable, str(Path(__file__).parent / "stand_in.py"))
QUICK_RULES = Rules(Backoff(0.05, 0.2), short_grace=0.3)
QUICK_PACE = Pace(poll=0.05, least=0.01, resync=0.3, trouble=0.5)


async def until(condition: Callable[[], Awaitable[Any]], *, seconds: float = 30.0) -> Any:
    """The first true answer of `condition`; fails the test after `seconds`, which is a limit for hangs."""
    deadline = time.monotonic() + seconds
    while not (answer := await condition()):
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.02)
    return answer


def holders(data: Path) -> list[int]:
    """The processes that hold the lock of any attempt under `data`."""
    return of(data.glob("attempts/*/lock"))


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data folder; no process of an attempt in it outlives the test."""
    yield tmp_path
    for pid in holders(tmp_path):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def cluster(data: Path) -> LocalCluster:
    """The local cluster, with the small launcher."""
    return local(data)


def local(data: Path, command: tuple[str, ...] = STAND_IN) -> LocalCluster:
    """A local cluster on `data`: another one on the same folder is what a restart makes."""
    return LocalCluster(data, (data / "store").as_uri(), data / "worker-url", command=command)


class Plane:
    """An operator that runs on a database and a cluster, and what the API would write beside it."""

    def __init__(self, database: Database, data: Path, **given: Any):
        self.database, self.data = database, data
        self.store = data / "store"
        self.wakeups = Wakeups(database)
        self.leader = Leader(database, seconds=given.pop("lease", 5.0), alone=given.pop("alone", False))
        self.operator = Operator(
            database=database,
            cluster=given.pop("cluster", None) or local(data),
            wakeups=self.wakeups,
            tokens=Tokens(database),
            leader=self.leader,
            store=FolderStore(self.store),
            **{"places": 1, "rules": QUICK_RULES, "pace": QUICK_PACE, **given},
        )
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Plane":
        self._stop.clear()
        self._task = asyncio.create_task(self.operator.run(self._stop))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        assert self._task is not None
        await self._task
        await self.wakeups.close()

    async def post(self, **fields: Any) -> str:
        """A queued job, as a POST makes it."""
        inputs = fields.pop("inputs", {})
        given = spec(**fields)
        job_id, now = new_id("job"), utcnow()
        async with self.database.transaction() as session:
            session.add(
                JobRow(
                    id=job_id, project_id="default", name=given.title, stage=given.stage.type,
                    spec=given.model_dump(mode="json"), spec_sha256=f"{job_id:0>64}", inputs=inputs, metadata_={},
                    priority=given.queue.priority, created_at=now, phase_since=now,
                )
            )  # fmt: skip
        await self.wakeups.wake(job_id)
        return job_id

    async def wish(self, job_id: str, **values: Any) -> None:
        """Writes an intent, as the API does."""
        async with self.database.transaction() as session:
            await session.execute(update(JobRow).where(JobRow.id == job_id).values(**values))
        await self.wakeups.wake(job_id)

    async def job(self, job_id: str) -> Any:
        """The job's row; None: it is gone."""
        async with self.database.reading() as session:
            return await session.get(JobRow, job_id)

    async def attempts(self, job_id: str) -> list[AttemptRow]:
        """The job's attempts, in order."""
        async with self.database.reading() as session:
            query = select(AttemptRow).where(AttemptRow.job_id == job_id).order_by(AttemptRow.number)
            return list((await session.scalars(query)).all())

    async def events(self, job_id: str) -> list[EventRow]:
        """The job's events, in order."""
        async with self.database.reading() as session:
            query = select(EventRow).where(EventRow.job_id == job_id).order_by(EventRow.number)
            return list((await session.scalars(query)).all())

    async def reaches(self, job_id: str, *phases: Phase, attempt: int | None = None) -> Any:
        """The job's row once it is in one of `phases` (and has come to `attempt`)."""

        async def there() -> Any:
            row = await self.job(job_id)
            return row if row.phase in phases and attempt in (None, row.attempt) else None

        return await until(there)

    async def report(self, job_id: str, attempt: int = 1, seq: int = 1, **fields: Any) -> Desired:
        """A worker's report, and the answer."""
        report = Report.model_validate({"seq": seq, "activity": "training", **fields})
        async with self.database.transaction() as session:
            accepted = await reports.accept(session, job_id, attempt, report)
        await self.wakeups.wake(job_id)
        return Desired(accepted.answer.desired)

    async def runs(self, job_id: str, attempt: int = 1) -> None:
        """Brings a posted job to `running`, by its first report."""
        await self.reaches(job_id, Phase.STARTING, attempt=attempt)

        async def started() -> bool:
            return (self.data / "attempts" / f"{job_id}-a{attempt}" / "log" / "starts").exists()

        await until(started)
        await self.report(job_id, attempt)
        await self.reaches(job_id, Phase.RUNNING)

    def starts(self, job_id: str, attempt: int = 1) -> int:
        """How many launchers of an attempt came to life."""
        path = self.data / "attempts" / f"{job_id}-a{attempt}" / "log" / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
async def plane(database: Database, data: Path) -> AsyncIterator[Plane]:
    """An operator that runs."""
    async with Plane(database, data) as running:
        yield running


LONG_AGO = timedelta(hours=1)
