"""Where attempts run: an operator that would look for them elsewhere does not start."""

from pathlib import Path

import pytest

from api.store import installation
from api.store.database import Database, utcnow
from api.store.tables import AttemptRow
from tests.operator.conftest import Plane


async def test_an_operator_may_move_only_when_no_attempt_has_objects_left(database: Database, tmp_path: Path) -> None:
    plane = Plane(database, tmp_path)
    job = await plane.post()
    await installation.runs_at(database, "namespace a")
    await installation.runs_at(database, "namespace a")
    async with database.transaction() as session:
        session.add(AttemptRow(job_id=job, number=1, object_name=f"{job}-a1", created_at=utcnow()))
    with pytest.raises(installation.Elsewhere, match="attempts still run in namespace a"):
        await installation.runs_at(database, "namespace b")
    await installation.runs_at(database, "namespace a")
    async with database.transaction() as session:
        row = await session.get(AttemptRow, (job, 1))
        assert row is not None
        row.cleaned = True
    await installation.runs_at(database, "namespace b")
    await plane.wakeups.close()


async def test_an_installation_keeps_its_name(database: Database) -> None:
    assert await installation.name(database) == await installation.name(database)
