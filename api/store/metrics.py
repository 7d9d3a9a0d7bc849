"""The curves of a job."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, RowMapping, select
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncSession

from api.store.following import newer
from api.store.tables import CheckpointRow, MetricRow


@dataclass(frozen=True, slots=True)
class Choice:
    """Which points of a job: of these names (empty: all), of one attempt, with the superseded ones or without, from
    one step to another, both included."""

    names: Sequence[str] = ()
    attempt: int | None = None
    superseded: bool = False
    from_step: int | None = None
    to_step: int | None = None


def page(connection: Connection, job: str, choice: Choice, *, after: int, limit: int) -> Sequence[RowMapping]:
    """The columns of points in the order they came, after row `after`."""
    # Columns and not mapped objects: who follows a job asks for this again and again.
    table = MetricRow.__table__
    query = select(table).where(*_chosen(job, choice), table.c.id > after).order_by(table.c.id).limit(limit)
    return connection.execute(query).mappings().all()


async def after(session: AsyncSession, cursors: dict[str, int], limit: int) -> Sequence[MetricRow]:
    """The points of each job after its cursor, in the order they came, at most `limit` in all.

    Within a job row ids grow in the order of commits, since a report holds the lock of the job's row.
    """
    return await newer(session, MetricRow, MetricRow.id, cursors, limit)


async def checkpoints(session: AsyncSession, job: str) -> Sequence[CheckpointRow]:
    """All checkpoints, oldest first, the pruned ones too."""
    query = select(CheckpointRow).where(CheckpointRow.job_id == job)
    return (await session.scalars(query.order_by(CheckpointRow.attempt, CheckpointRow.step, CheckpointRow.part))).all()


def _chosen(job: str, choice: Choice) -> Iterator[ColumnElement[bool]]:
    yield MetricRow.job_id == job
    if choice.names:
        yield MetricRow.name.in_(choice.names)
    if choice.attempt is not None:
        yield MetricRow.attempt == choice.attempt
    if choice.from_step is not None:
        yield MetricRow.step >= choice.from_step
    if choice.to_step is not None:
        yield MetricRow.step <= choice.to_step
    if not choice.superseded:
        yield MetricRow.superseded.is_(False)
