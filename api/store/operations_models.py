"""Models: what a job that succeeded hands over, registered with where it came from."""

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from api.store.ids import new_id
from api.store.tables import CheckpointRow, JobRow, ModelRow, Project
from worker.contract.protocol import Termination


async def register(
    session: AsyncSession, job: JobRow, attempt: int, termination: Termination, now: datetime
) -> list[ModelRow]:
    """Makes rows of the attempt's outputs, which the caller has checked: the next version of the job's name.

    A model and an adapter of one attempt are one version. The caller holds the lock of the job's row.
    """
    if not termination.outputs:
        return []
    # Two jobs of one name may end at once: versions are given under the project's lock.
    await session.execute(select(Project.id).where(Project.id == job.project_id).with_for_update())
    newest = await session.scalar(
        select(func.max(ModelRow.version)).where(ModelRow.project_id == job.project_id, ModelRow.name == job.name)
    )
    saved = (
        await session.execute(
            select(CheckpointRow.attempt, CheckpointRow.step, CheckpointRow.sha256)
            .where(CheckpointRow.job_id == job.id)
            .order_by(CheckpointRow.step.desc(), CheckpointRow.attempt.desc())
            .limit(1)
        )
    ).first()
    inputs = job.inputs
    lineage = {
        "job": job.id,
        "attempt": attempt,
        "step": termination.step,
        "stage": job.stage,
        "spec_sha256": job.spec_sha256,
        "checkpoint": {"attempt": saved.attempt, "step": saved.step, "sha256": saved.sha256} if saved else None,
        "data": {path: given["sha256"] for path, given in inputs.items() if given["kind"] == "file"},
        "parents": {
            path: {"reference": given["reference"], "sha256": given["sha256"]}
            for path, given in inputs.items()
            if given["kind"] != "file"
        },
    }
    models = [
        ModelRow(
            id=new_id("model"),
            project_id=job.project_id,
            name=job.name,
            version=(newest or 0) + 1,
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
