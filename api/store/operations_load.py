"""Jobs as the operator sees them: rows made into plain values, all of those that need it in a few queries.

What it asks for all the time is for `Database.look`, and reads columns and not mapped objects.
"""

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from sqlalchemy import Select, and_, func, or_, select
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Bundle, Session

from api.domain.job import ACTIVE, FINAL, Attempt, Desired, Fault, Job, Need, Phase, Reason
from api.domain.quota import Limit
from api.store.tables import AttemptRow, CheckpointRow, JobRow, Project
from worker.contract.order import Input
from worker.contract.protocol import Termination
from worker.contract.spec import JobSpec

_JOB: Bundle[Any] = Bundle(
    "job",
    JobRow.id,
    JobRow.project_id,
    JobRow.name,
    JobRow.spec_sha256,
    JobRow.spec,
    JobRow.phase,
    JobRow.desired,
    JobRow.reason,
    JobRow.message,
    JobRow.priority,
    JobRow.created_at,
    JobRow.phase_since,
    JobRow.fruitless,
    JobRow.worker_errors,
    JobRow.ran_for,
    JobRow.not_before,
    JobRow.retry_requested,
    JobRow.deleted_at,
    JobRow.waiting,
    JobRow.needs,
)
_ATTEMPT: Bundle[Any] = Bundle(
    "attempt",
    AttemptRow.number,
    AttemptRow.object_name,
    AttemptRow.created_at,
    AttemptRow.uid,
    AttemptRow.accepted_at,
    AttemptRow.ended_at,
    AttemptRow.progressed_at,
    AttemptRow.reported_at,
    AttemptRow.began_with_step,
    AttemptRow.stopping_since,
    AttemptRow.stop_reason,
    AttemptRow.termination,
    AttemptRow.reason,
    AttemptRow.message,
    AttemptRow.cleaned,
    AttemptRow.confirmed_dead,
)


def unsettled(connection: Connection) -> list[Job]:
    """All jobs that are not final."""
    return _load(connection, JobRow.phase.in_([str(phase) for phase in Phase if phase not in FINAL]))


def left_over(connection: Connection) -> list[Job]:
    """Final jobs about which there is something to do: deleted, to be tried again, or with objects left."""
    final = JobRow.phase.in_([str(phase) for phase in FINAL])
    left = or_(
        JobRow.deleted_at.is_not(None),
        JobRow.retry_requested.is_(True),
        and_(JobRow.attempt > 0, AttemptRow.cleaned.is_(False)),
    )
    return _load(connection, and_(final, left))


def whole(connection: Connection) -> list[Job]:
    """All jobs about which there is, or may be, something to do."""
    return unsettled(connection) + left_over(connection)


def one(connection: Connection, job_id: str) -> Job | None:
    """One job; None: it is gone."""
    jobs = _load(connection, JobRow.id == job_id)
    return jobs[0] if jobs else None


def some(connection: Connection, ids: Collection[str]) -> list[Job]:
    """The jobs of these ids, as far as they are there."""
    return _load(connection, JobRow.id.in_(ids))


def limits(connection: Connection) -> dict[str, Limit]:
    """What the active jobs of projects may have, of those that are limited; by the project's id."""
    query = select(Project.id, Project.name, Project.max_jobs, Project.max_accelerators)
    limited = query.where(Project.max_jobs.is_not(None) | Project.max_accelerators.is_not(None))
    return {row.id: Limit(row.name, row.max_jobs, row.max_accelerators) for row in connection.execute(limited)}


def project(connection: Connection, job_id: str) -> str:
    """The name of a job's project."""
    name = connection.scalar(
        select(Project.name).join(JobRow, JobRow.project_id == Project.id).where(JobRow.id == job_id)
    )
    return name or ""


async def inputs(session: AsyncSession, job_id: str) -> dict[str, Input]:
    """What the job's references were resolved to, by their path in the spec."""
    stored = await session.scalar(select(JobRow.inputs).where(JobRow.id == job_id))
    return {path: Input.model_validate(given) for path, given in (stored or {}).items()}


async def current_names(session: AsyncSession) -> set[str]:
    """The object names of the attempts that may have objects: the current ones of active jobs."""
    query = (
        select(AttemptRow.object_name)
        .join(JobRow, and_(JobRow.id == AttemptRow.job_id, JobRow.attempt == AttemptRow.number))
        .where(JobRow.phase.in_([str(phase) for phase in ACTIVE]))
    )
    return set((await session.scalars(query)).all())


def _load(connection: Connection, wanted: Any) -> list[Job]:
    current = and_(AttemptRow.job_id == JobRow.id, AttemptRow.number == JobRow.attempt)
    with Session(connection) as session:
        rows = session.execute(select(_JOB, _ATTEMPT).outerjoin(AttemptRow, current).where(wanted)).all()
    saved = _checkpoints(connection, select(JobRow.id).outerjoin(AttemptRow, current).where(wanted))
    needs = _needs(connection, [job for job, _ in rows if job.waiting])
    return [_job(job, attempt, needs.get(job.id, ()), *saved.get(job.id, (None, 0, None))) for job, attempt in rows]


def _checkpoints(connection: Connection, ids: Select[str]) -> dict[str, tuple[int | None, int, int | None]]:
    """By job: the step of its newest checkpoint, how many are kept, and the last attempt that made one."""
    query = (
        select(CheckpointRow.job_id, func.max(CheckpointRow.step), func.count(), func.max(CheckpointRow.attempt))
        .where(CheckpointRow.job_id.in_(ids), CheckpointRow.pruned_at.is_(None))
        .group_by(CheckpointRow.job_id)
    )
    return {job: (newest, count, by) for job, newest, count, by in connection.execute(query)}


def _needs(connection: Connection, waiting: list[Any]) -> dict[str, tuple[Need, ...]]:
    """By job: what it waits for, and how the steps stand that are to hand it over."""
    if not waiting:
        return {}
    wanted = {need["job"] for row in waiting for need in row.needs}
    query = select(JobRow.id, JobRow.phase, JobRow.retry_requested, JobRow.reason, JobRow.fault)
    steps = {step.id: step for step in connection.execute(query.where(JobRow.id.in_(wanted)))}
    return {row.id: tuple(_need(need, steps.get(need["job"])) for need in row.needs) for row in waiting}


def _need(need: dict[str, Any], step: Any) -> Need:
    if step is None:  # never, as long as nobody writes to the database by hand
        return Need(**need, phase=Phase.CANCELLED)
    return Need(
        **need,
        phase=Phase(step.phase),
        retried=step.retry_requested,
        reason=Reason(step.reason) if step.reason else None,
        fault=Fault(step.fault) if step.fault else None,
    )


def _job(row: Any, attempt: Any, needs: tuple[Need, ...], newest: int | None, live: int, saved_by: int | None) -> Job:
    return Job(
        id=row.id,
        project_id=row.project_id,
        name=row.name,
        spec=_Stored(row.spec_sha256, row.spec).parsed(),
        phase=Phase(row.phase),
        desired=Desired(row.desired),
        reason=Reason(row.reason) if row.reason else None,
        priority=row.priority,
        created_at=row.created_at,
        phase_since=row.phase_since,
        message=row.message,
        attempt=_attempt(attempt) if attempt.number is not None else None,
        fruitless=row.fruitless,
        worker_errors=row.worker_errors,
        ran_for=row.ran_for,
        not_before=row.not_before,
        retry_requested=row.retry_requested,
        newest_checkpoint=newest,
        saved=saved_by is not None and saved_by == attempt.number,
        live_checkpoints=live,
        deleted=row.deleted_at is not None,
        needs=needs,
    )


def _attempt(row: Any) -> Attempt:
    return Attempt(
        number=row.number,
        object_name=row.object_name,
        created_at=row.created_at,
        uid=row.uid,
        accepted_at=row.accepted_at,
        ended_at=row.ended_at,
        progressed_at=row.progressed_at,
        reported_at=row.reported_at,
        began_with_step=row.began_with_step,
        stopping_since=row.stopping_since,
        stop_reason=Reason(row.stop_reason) if row.stop_reason else None,
        termination=Termination.model_validate(row.termination) if row.termination else None,
        reason=Reason(row.reason) if row.reason else None,
        message=row.message,
        cleaned=row.cleaned,
        confirmed_dead=row.confirmed_dead,
    )


class _Stored:
    """A stored spec, equal to others of the same hash: a spec never changes, so each is parsed once."""

    def __init__(self, sha256: str, data: dict[str, Any]) -> None:
        self.sha256, self.data = sha256, data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stored) and other.sha256 == self.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def parsed(self) -> JobSpec:
        return _parse(self)


@lru_cache(maxsize=4096)
def _parse(stored: _Stored) -> JobSpec:
    return JobSpec.model_validate(stored.data)
