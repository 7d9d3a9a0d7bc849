"""Models: what a job that succeeded hands over, registered with where it came from."""

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncSession

from api.store.ids import new_id
from api.store.tables import CheckpointRow, JobRow, ModelNameRow, ModelRow
from worker.contract.protocol import Termination


async def register(
    session: AsyncSession, job: JobRow, attempt: int, termination: Termination, now: datetime
) -> list[ModelRow]:
    """Makes rows of the attempt's outputs, which the caller has checked: the next version of the job's name.

    A model and an adapter of one attempt are one version. The caller holds the lock of the job's row.
    """
    if not termination.outputs:
        return []
    version = await _next_version(session, job.project_id, job.name)
    saved = (
        await session.execute(
            select(CheckpointRow.attempt, CheckpointRow.step, CheckpointRow.sha256)
            .where(CheckpointRow.job_id == job.id)
            .order_by(CheckpointRow.step.desc(), CheckpointRow.part.desc(), CheckpointRow.attempt.desc())
            .limit(1)
        )
    ).first()
    data = {path: given for path, given in job.inputs.items() if given.get("rows") is not None}
    parents = {path: given for path, given in job.inputs.items() if path not in data}
    lineage = {
        "job": job.id,
        "attempt": attempt,
        "step": termination.step,
        "stage": job.stage,
        "spec_sha256": job.spec_sha256,
        "checkpoint": {"attempt": saved.attempt, "step": saved.step, "sha256": saved.sha256} if saved else None,
        "data": {path: given["sha256"] for path, given in data.items()},
        "parents": {
            path: {"reference": given["reference"], "sha256": given["sha256"]} for path, given in parents.items()
        },
        "ancestors": await _ancestors(session, job.project_id, {given["sha256"] for given in parents.values()}),
    }
    models = [
        ModelRow(
            id=new_id("model"),
            project_id=job.project_id,
            name=job.name,
            version=version,
            kind=output.kind,
            job_id=job.id,
            attempt=attempt,
            path=output.path,
            bytes=output.bytes,
            sha256=output.sha256,
            lineage=lineage,
            created_at=now,
        )
        for output in termination.outputs
    ]
    session.add_all(models)
    await session.flush()
    return models


async def _ancestors(session: AsyncSession, project: str, parents: set[str]) -> dict[str, Any]:
    """All models that the ones of these hashes were made from, and they themselves, by their hashes: each with what it
    is and its own lineage. Kept here, where it outlives them; flat, since most are the ancestor of several.
    """
    found: dict[str, Any] = {}
    query = select(ModelRow).where(ModelRow.project_id == project, ModelRow.sha256.in_(parents))
    for row in await session.scalars(query.order_by(ModelRow.created_at, ModelRow.id)):
        own = {name: value for name, value in row.lineage.items() if name != "ancestors"}
        found |= row.lineage.get("ancestors", {})
        found[row.sha256] = {"name": row.name, "version": row.version, "kind": row.kind, "lineage": own}
    return found


async def _next_version(session: AsyncSession, project: str, name: str) -> int:
    """A version that no model of the name ever had. Of two jobs of one name that end at once, one waits here."""
    insert = sqlite_insert if session.get_bind().dialect.name == "sqlite" else postgresql_insert
    counted = insert(ModelNameRow).values(project_id=project, name=name, newest=1)
    counted = counted.on_conflict_do_update(
        index_elements=["project_id", "name"], set_={"newest": ModelNameRow.newest + 1}
    )
    return (await session.execute(counted.returning(ModelNameRow.newest))).scalar_one()
