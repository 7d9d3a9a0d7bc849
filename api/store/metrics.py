"""The curves of a job."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, RowMapping, and_, func, or_, select
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncSession

from api.store.tables import CheckpointRow, MetricRow


@dataclass(frozen=True, slots=True)
class Choice:
    """Which points of a job: of these names (empty: all), of one attempt, with the superseded ones or without."""

    names: Sequence[str] = ()
    attempt: int | None = None
    superseded: bool = False


def page(connection: Connection, job: str, choice: Choice, *, after: int, limit: int) -> Sequence[RowMapping]:
    """The columns of points in the order they came, after row `after`."""
    # Columns and not mapped objects: who follows a job asks for this again and again.
    table = MetricRow.__table__
    query = select(table).where(*_chosen(job, choice), table.c.id > after).order_by(table.c.id).limit(limit)
    return connection.execute(query).mappings().all()


async def thinned(session: AsyncSession, job: str, choice: Choice, *, points: int) -> Sequence[MetricRow]:
    """At most `points` points a name, evenly spaced by rank of step, the first and the last among them."""
    chosen = select(MetricRow).where(*_chosen(job, choice)).subquery()
    numbered = select(
        chosen.c.id,
        (func.row_number().over(partition_by=chosen.c.name, order_by=(chosen.c.step, chosen.c.id)) - 1).label("rank"),
        (func.count().over(partition_by=chosen.c.name) - 1).label("last"),
    ).subquery()
    # A point is kept where its bucket is another than that of the point before.
    bucket = numbered.c.rank * (points - 1) // func.nullif(numbered.c.last, 0)
    previous = (numbered.c.rank - 1) * (points - 1) // func.nullif(numbered.c.last, 0)
    kept = select(numbered.c.id).where(or_(numbered.c.last < points, numbered.c.rank == 0, bucket != previous))
    query = select(MetricRow).where(MetricRow.id.in_(kept))
    return (await session.scalars(query.order_by(MetricRow.name, MetricRow.step, MetricRow.id))).all()


async def after(session: AsyncSession, cursors: dict[str, int], limit: int) -> Sequence[MetricRow]:
    """The points of each job after its cursor, in the order they came, at most `limit` in all.

    Within a job row ids grow in the order of commits, since a report holds the lock of the job's row.
    """
    wanted = or_(*(and_(MetricRow.job_id == job, MetricRow.id > id) for job, id in cursors.items()))
    query = select(MetricRow).where(wanted).order_by(MetricRow.id).limit(limit)
    return (await session.scalars(query)).all()


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
    if not choice.superseded:
        yield MetricRow.superseded.is_(False)
