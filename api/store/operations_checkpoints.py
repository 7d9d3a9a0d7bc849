"""Which checkpoints may go, and what a deleted job leaves behind."""

from datetime import datetime

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from api.store.operations_leader import Lease, require
from api.store.tables import AttemptRow, CheckpointRow, JobRow, ModelRow
from worker.contract.protocol import Checkpoint


async def prunable(session: AsyncSession, job_id: str, keep: int) -> list[tuple[int, int, int, str]]:
    """The checkpoints beyond the `keep` newest, as (attempt, step, part, path).

    A later attempt that went on from step T found everything past T damaged: that counts for nothing, and goes too.
    """
    rows = (
        await session.execute(
            select(CheckpointRow.attempt, CheckpointRow.step, CheckpointRow.part, CheckpointRow.path)
            .where(CheckpointRow.job_id == job_id, CheckpointRow.pruned_at.is_(None))
            .order_by(CheckpointRow.step.desc(), CheckpointRow.part.desc(), CheckpointRow.attempt.desc())
        )
    ).all()
    resumed = (
        await session.execute(
            select(AttemptRow.number, AttemptRow.resumed_from).where(
                AttemptRow.job_id == job_id, AttemptRow.resumed_from.is_not(None)
            )
        )
    ).all()

    def passed_over(attempt: int, step: int) -> bool:
        return any(later > attempt and start is not None and step > start for later, start in resumed)

    good = [row for row in rows if not passed_over(row.attempt, row.step)]
    bad = [row for row in rows if passed_over(row.attempt, row.step)]
    gone = good[keep:] + bad
    return [(row.attempt, row.step, row.part, row.path) for row in gone]


async def mark_pruned(
    session: AsyncSession, lease: Lease, job_id: str, gone: list[tuple[int, int, int]], now: datetime
) -> None:
    """Records that the checkpoints (attempt, step, part) were removed. Raises NotLeader."""
    await require(session, lease)
    for attempt, step, part in gone:
        await session.execute(
            update(CheckpointRow)
            .where(
                CheckpointRow.job_id == job_id,
                CheckpointRow.attempt == attempt,
                CheckpointRow.step == step,
                CheckpointRow.part == part,
            )
            .values(pruned_at=now)
        )


async def recorded(session: AsyncSession, job_id: str, attempt: int) -> set[str]:
    """The paths of the attempt's checkpoints that are recorded, pruned ones too."""
    query = select(CheckpointRow.path).where(CheckpointRow.job_id == job_id, CheckpointRow.attempt == attempt)
    return set((await session.scalars(query)).all())


async def record(session: AsyncSession, lease: Lease, job_id: str, attempt: int, found: list[Checkpoint]) -> None:
    """Records checkpoints that no report told of; a job that is gone has none. Raises NotLeader."""
    await require(session, lease)
    if await session.scalar(select(JobRow.id).where(JobRow.id == job_id).with_for_update()) is None:
        return
    session.add_all(
        CheckpointRow(job_id=job_id, attempt=attempt, pruned_at=None, **checkpoint.model_dump()) for checkpoint in found
    )


async def kept_outputs(session: AsyncSession, job_id: str) -> list[str]:
    """The paths in the store that models of this job lie in."""
    return list((await session.scalars(select(ModelRow.path).where(ModelRow.job_id == job_id))).all())


async def forget(session: AsyncSession, lease: Lease, job_id: str) -> None:
    """Removes a deleted job's rows; its models stay. Raises NotLeader."""
    await require(session, lease)
    await session.execute(delete(JobRow).where(JobRow.id == job_id, JobRow.deleted_at.is_not(None)))
