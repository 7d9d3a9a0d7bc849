"""An operator among projects that may have so much at a time."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from api.domain.job import Phase, Reason
from api.store.database import Database, utcnow
from api.store.tables import JobRow, Project
from tests.operator.conftest import Plane, until

# As on one machine, and as where a cluster gives places.
PLACES = (4, None)


async def limit(plane: Plane, jobs: int | None) -> None:
    """What the default project may have from now on."""
    async with plane.database.transaction() as session:
        await session.execute(update(Project).where(Project.id == "default").values(max_jobs=jobs))


async def waits(plane: Plane, job: str) -> Any:
    """The job's row, once it is told that it waits for the quota."""

    async def told() -> Any:
        row = await plane.job(job)
        return row if row.reason == Reason.QUOTA_WAIT else None

    return await until(told)


@pytest.mark.parametrize("places", PLACES)
async def test_jobs_beyond_a_projects_quota_wait_and_start_when_others_end(
    database: Database, data: Path, places: int | None
) -> None:
    async with Plane(database, data, places=places) as plane:
        await limit(plane, 1)
        async with database.transaction() as session:
            session.add(Project(id="other", name="other", created_at=utcnow()))
        first = await plane.post(metadata={"seconds": "600"})
        await plane.runs(first)
        second, third = [await plane.post(metadata={"seconds": "0"}) for _ in range(2)]
        row = await waits(plane, second)
        assert (row.phase, row.attempt) == (Phase.QUEUED, 0)
        assert row.message == "project default has all the active jobs that it may: 1"
        await waits(plane, third)
        # Another project's are not held up.
        theirs = await plane.post(metadata={"seconds": "0"})
        await plane.wish(theirs, project_id="other")
        await plane.reaches(theirs, Phase.SUCCEEDED)
        assert (await plane.job(second)).phase == Phase.QUEUED
        await plane.wish(first, desired="cancel")
        rows = [await plane.reaches(job, Phase.SUCCEEDED) for job in (second, third)]
        ended = (await plane.job(first)).finished_at
        assert ended <= rows[0].started_at
        assert rows[0].finished_at <= rows[1].started_at
        assert [event.type for event in await plane.events(second)][:2] == ["QuotaWait", "Starting"]


@pytest.mark.parametrize("places", PLACES)
async def test_a_quota_that_is_raised_is_used_at_once_and_one_that_is_lowered_ends_nothing(
    database: Database, data: Path, places: int | None
) -> None:
    async with Plane(database, data, places=places) as plane:
        await limit(plane, 0)
        jobs = [await plane.post(metadata={"seconds": "600"}) for _ in range(2)]
        for job in jobs:
            await waits(plane, job)
        await limit(plane, None)
        for job in jobs:
            await plane.runs(job)
        await limit(plane, 0)
        await plane.post(metadata={"seconds": "0"})
        async with database.reading() as session:
            assert {(await session.get_one(JobRow, job)).phase for job in jobs} == {Phase.RUNNING}
