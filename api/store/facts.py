"""What is stored of a job that explains where it is."""

from datetime import datetime
from typing import get_args

from sqlalchemy import select
from sqlalchemy.engine import Connection

from api.domain.explain import Facts, Happened, Line, Tried
from api.domain.job import ACTIVE, Job, Phase, Reason
from api.domain.places import ahead_of
from api.store import operations_load
from api.store.jobs import NoSuchJob
from api.store.operations_leader import led
from api.store.tables import AttemptRow, EventRow, JobRow
from worker.contract.protocol import Level, Progress

_ATTEMPTS, _EVENTS = 10, 10
_WORTH_SAYING = [level for level in get_args(Level) if level != "info"]


def facts(connection: Connection, id: str, project: str, *, now: datetime, places: int | None) -> Facts:
    """All that explains the job. `places`: how many jobs may run at once; None: a cluster gives places.

    Raises NoSuchJob.
    """
    job = operations_load.one(connection, id)
    if job is None or job.deleted or job.project_id != project:
        raise NoSuchJob(id)
    row = connection.execute(
        select(JobRow.pipeline_id, JobRow.activity, JobRow.progress).where(JobRow.id == id)
    ).one_or_none()
    if row is None:
        raise NoSuchJob(id)
    number = job.attempt.number if job.attempt is not None else 0
    operators = led(connection)
    progress = Progress.model_validate(row.progress) if row.progress is not None else None
    return Facts(
        job=job,
        now=now,
        tried=_tried(connection, id),
        activity=row.activity,
        step=progress.step if progress is not None else None,
        steps=progress.steps if progress is not None else None,
        events=_events(connection, id, number),
        line=_line(connection, job, places, now) if places is not None and job.phase is Phase.QUEUED else None,
        kubernetes=places is None,
        pipeline=row.pipeline_id,
        led=operators.now,
        unheard=operators.trouble,
    )


def _tried(connection: Connection, id: str) -> tuple[Tried, ...]:
    columns = (AttemptRow.number, AttemptRow.ended_at, AttemptRow.reason, AttemptRow.message, AttemptRow.exit_code)
    query = select(*columns).where(AttemptRow.job_id == id, AttemptRow.ended_at.is_not(None))
    rows = connection.execute(query.order_by(AttemptRow.number.desc()).limit(_ATTEMPTS)).all()
    return tuple(
        Tried(row.number, row.ended_at, Reason(row.reason) if row.reason else None, row.message, row.exit_code)
        for row in reversed(rows)
    )


def _events(connection: Connection, id: str, number: int) -> tuple[Happened, ...]:
    """The newest warnings and errors of an attempt."""
    query = select(EventRow.at, EventRow.type, EventRow.level, EventRow.message).where(
        EventRow.job_id == id, EventRow.attempt == number, EventRow.level.in_(_WORTH_SAYING)
    )
    rows = connection.execute(query.order_by(EventRow.number.desc()).limit(_EVENTS)).all()
    return tuple(Happened(row.at, row.type, row.level, row.message) for row in reversed(rows))


def _line(connection: Connection, job: Job, places: int, now: datetime) -> Line:
    jobs = operations_load.unsettled(connection)
    return Line(places, sum(other.phase in ACTIVE for other in jobs), ahead_of(job, jobs, now))
