"""The answers that a job shows to people, in the order in which they came; no more than `MOST` a job."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, RowMapping, delete, func, select
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncSession

from api.store.following import newer
from api.store.tables import SampleRow

MOST = 20_000
"""Samples that a job may have. Its worker keeps to the spec's budget, but attempts that begin anew add to it."""
# Where there are more, so many at least go at a time: it takes a look at all of them.
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Choice:
    """Which samples of a job: of one step, of one attempt, with the superseded ones or without."""

    step: int | None = None
    attempt: int | None = None
    superseded: bool = False


def page(
    connection: Connection, job: str, choice: Choice, *, after: int | None, limit: int, newest_first: bool = False
) -> Sequence[RowMapping]:
    """The columns of samples after row `after`, in the order they came, or the other way round."""
    table = SampleRow.__table__
    query = select(table).where(*_chosen(job, choice))
    if after is not None:
        query = query.where(table.c.id < after if newest_first else table.c.id > after)
    query = query.order_by(table.c.id.desc() if newest_first else table.c.id)
    return connection.execute(query.limit(limit)).mappings().all()


async def after(session: AsyncSession, cursors: dict[str, int], limit: int) -> Sequence[SampleRow]:
    """The samples of each job after its cursor, in the order they came, at most `limit` in all."""
    return await newer(session, SampleRow, SampleRow.id, cursors, limit)


async def newest(session: AsyncSession, jobs: Sequence[str]) -> dict[str, int]:
    """The newest row of each job that has any."""
    query = select(SampleRow.job_id, func.max(SampleRow.id)).where(SampleRow.job_id.in_(jobs))
    return {id: row for id, row in await session.execute(query.group_by(SampleRow.job_id))}


def make_room(connection: Connection, job: str, most: int | None = None) -> int:
    """Deletes what a job has beyond `most` (absent: `MOST`), and gives how many. The caller holds its row's lock.

    The superseded ones go first. Then the steps with the most samples lose some, the oldest of them first: each step
    keeps some for as long as others have more.
    """
    most = MOST if most is None else most
    count = connection.scalar(select(func.count()).where(SampleRow.job_id == job)) or 0
    if count <= most:
        return 0
    place = func.row_number().over(
        partition_by=(SampleRow.superseded, SampleRow.step), order_by=(SampleRow.index, SampleRow.id)
    )
    ranked = (
        select(SampleRow.id, SampleRow.superseded, SampleRow.step, place.label("place"))
        .where(SampleRow.job_id == job)
        .subquery()
    )
    first = (
        select(ranked.c.id)
        .order_by(
            ranked.c.superseded.desc(),
            ranked.c.place.desc(),
            ranked.c.step,
            ranked.c.id,
        )
        .limit(max(count - most, min(_AT_ONCE, count // 4)))
    )
    return connection.execute(delete(SampleRow).where(SampleRow.id.in_(first))).rowcount


def _chosen(job: str, choice: Choice) -> Iterator[ColumnElement[bool]]:
    yield SampleRow.job_id == job
    if choice.step is not None:
        yield SampleRow.step == choice.step
    if choice.attempt is not None:
        yield SampleRow.attempt == choice.attempt
    if not choice.superseded:
        yield SampleRow.superseded.is_(False)
