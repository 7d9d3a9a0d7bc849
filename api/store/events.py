"""A job's events, numbered from 1 without a gap."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from sqlalchemy import RowMapping, insert, select
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncSession

from api.store.database import utcnow
from api.store.following import newer
from api.store.tables import EventRow, JobRow
from worker.contract.protocol import Level

Source = Literal["api", "operator", "worker"]
# The largest that the column holds: PostgreSQL takes no larger number even to compare with.
_LAST = 2**31 - 1


async def add(
    session: AsyncSession,
    job: JobRow,
    type: str,
    message: str,
    *,
    level: Level = "info",
    source: Source = "operator",
    attempt: int | None = None,
    step: int | None = None,
    at: datetime | None = None,
) -> int:
    """Appends an event and gives its number. The caller holds the lock of `job`'s row, so that a reader skips none."""
    job.event_count += 1
    row = {
        "job_id": job.id,
        "number": job.event_count,
        "at": at or utcnow(),
        "type": type,
        "level": level,
        "source": source,
        "message": message,
        "attempt": attempt,
        "step": step,
    }
    await session.execute(insert(EventRow).values(**row))
    return job.event_count


def append(
    connection: Connection,
    job_id: str,
    number: int,
    type: str,
    message: str,
    attempt: int | None,
    at: datetime,
    level: Level = "info",
) -> None:
    """An event of the operator with its `number`, which the caller sets as the job's `event_count`, under its lock."""
    row = {"job_id": job_id, "number": number, "at": at, "type": type, "level": level, "source": "operator"}
    connection.execute(insert(EventRow), [{**row, "message": message, "attempt": attempt, "step": None}])


def page(connection: Connection, job: str, *, after: int, limit: int) -> Sequence[RowMapping]:
    """The columns of a job's events after number `after`, oldest first."""
    # Columns and not mapped objects: who follows a job asks for this again and again.
    table = EventRow.__table__
    query = (
        select(table)
        .where(table.c.job_id == job, table.c.number > min(after, _LAST))
        .order_by(table.c.number)
        .limit(limit)
    )
    return connection.execute(query).mappings().all()


async def after(session: AsyncSession, cursors: dict[str, int], limit: int) -> Sequence[EventRow]:
    """The events of each job after its cursor, oldest first, at most `limit` in all."""
    # PostgreSQL takes no larger number even to compare with.
    bounded = {job: min(number, _LAST) for job, number in cursors.items()}
    return await newer(session, EventRow, EventRow.number, bounded, limit)
