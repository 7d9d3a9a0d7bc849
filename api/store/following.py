"""What is new of many jobs at once: one look at an index for each, in one query."""

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import ARRAY, BigInteger, Integer, Select, String, and_, bindparam, func, or_, select, true
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
    if len(cursors) == 1:
        [(job, after)] = cursors.items()
        return (await session.scalars(_of_one(table, number), {"job": job, "after": after, "most": limit})).all()
    if session.get_bind().dialect.name != "sqlite":
        given = {"jobs": list(cursors), "after": list(cursors.values()), "most": limit}
        return (await session.scalars(_of_many(table, number), given)).all()
    rows: list[Row] = []
    entries = list(cursors.items())
    for start in range(0, len(entries), _CHUNK):
        chunk = entries[start : start + _CHUNK]
        anywhere = or_(*(and_(table.job_id == job, number > after) for job, after in chunk))
        rows += (await session.scalars(select(table).where(anywhere).order_by(number).limit(limit))).all()
    return sorted(rows, key=lambda row: int(getattr(row, number.key)))[:limit]


# Made once: to put a statement together takes longer than to do it, and each stream does one when it is opened.
@cache
def _of_one(table: Any, number: InstrumentedAttribute[int]) -> Select[Any]:
    own = select(table).where(table.job_id == bindparam("job"), number > bindparam("after"))
    return own.order_by(number).limit(bindparam("most", type_=Integer))


@cache
def _of_many(table: Any, number: InstrumentedAttribute[int]) -> Select[Any]:
    """Tied to one look at the index a job: by itself PostgreSQL might read all rows in the order that is asked for."""
    most = bindparam("most", type_=Integer)
    wanted = func.unnest(bindparam("jobs", type_=ARRAY(String)), bindparam("after", type_=ARRAY(BigInteger)))
    cursor = wanted.table_valued("job", "after", name="cursors").render_derived()
    own = select(table).where(table.job_id == cursor.c.job, number > cursor.c.after)
    found = own.order_by(number).limit(most).lateral()
    of_all = select(aliased(table, found)).select_from(cursor).join(found, true())
    return of_all.order_by(found.c[number.key]).limit(most)
