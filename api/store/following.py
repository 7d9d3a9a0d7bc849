"""What is new of many jobs at once: one look at an index for each, in one query."""

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import ARRAY, BigInteger, String, and_, cast, func, or_, select, true
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute, aliased

from api.store.tables import EventRow, MetricRow, SampleRow

Row = TypeVar("Row", EventRow, MetricRow, SampleRow)
# Conditions in one query of SQLite, which has a limit.
_CHUNK = 200


async def newer(
    session: AsyncSession, table: type[Row], number: InstrumentedAttribute[int], cursors: dict[str, int], limit: int
) -> Sequence[Row]:
    """The rows of each job whose `number` is past its cursor, in the order of the numbers, at most `limit` in all."""
    if session.get_bind().dialect.name != "sqlite":
        jobs, after = list(cursors), list(cursors.values())
        # Tied to one look at the index a job: by itself PostgreSQL might read all rows in the order that is asked for.
        wanted = func.unnest(cast(jobs, ARRAY(String)), cast(after, ARRAY(BigInteger)))
        cursor = wanted.table_valued("job", "after", name="cursors").render_derived()
        own = select(table).where(table.job_id == cursor.c.job, number > cursor.c.after)
        found = own.order_by(number).limit(limit).lateral()
        of_all = select(aliased(table, found)).select_from(cursor).join(found, true())
        return (await session.scalars(of_all.order_by(found.c[number.key]).limit(limit))).all()
    rows: list[Row] = []
    entries = list(cursors.items())
    for start in range(0, len(entries), _CHUNK):
        chunk = entries[start : start + _CHUNK]
        anywhere = or_(*(and_(table.job_id == job, number > after) for job, after in chunk))
        rows += (await session.scalars(select(table).where(anywhere).order_by(number).limit(limit))).all()
    return sorted(rows, key=lambda row: _number(row, number))[:limit]


def _number(row: Any, number: InstrumentedAttribute[int]) -> int:
    return int(getattr(row, number.key))
