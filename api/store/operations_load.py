"""Jobs as the operator sees them: rows made into plain values, all of those that need it in three queries."""

from functools import lru_cache
from typing import Any

from sqlalchemy import Select, and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from api.domain.job import ACTIVE, FINAL, Attempt, Desired, Job, Phase, Reason
from api.store.tables import AttemptRow, CheckpointRow, JobRow
from worker.contract.order import Input
from worker.contract.protocol import Termination
from worker.contract.spec import JobSpec


async def unsettled(session: AsyncSession) -> list[Job]:
    """All jobs that are not final."""
    return await _load(session, JobRow.phase.in_([str(phase) for phase in Phase if phase not in FINAL]))


async def left_over(session: AsyncSession) -> list[Job]:
    """Final jobs about which there is something to do: deleted, to be tried again, or with objects left."""
    final = JobRow.phase.in_([str(phase) for phase in FINAL])
    left = or_(
        JobRow.deleted_at.is_not(None),
        JobRow.retry_requested.is_(True),
        and_(JobRow.attempt > 0, AttemptRow.cleaned.is_(False)),
    )
    return await _load(session, and_(final, left))


async def one(session: AsyncSession, job_id: str) -> Job | None:
    """One job; None: it is gone."""
    jobs = await _load(session, JobRow.id == job_id)
    return jobs[0] if jobs else None


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


async def _load(session: AsyncSession, wanted: Any) -> list[Job]:
    current = and_(AttemptRow.job_id == JobRow.id, AttemptRow.number == JobRow.attempt)
    query = select(JobRow, AttemptRow).outerjoin(AttemptRow, current).where(wanted)
    rows = (await session.execute(query.execution_options(populate_existing=True))).all()
    saved = await _checkpoints(session, select(JobRow.id).outerjoin(AttemptRow, current).where(wanted))
    return [_job(job, attempt, *saved.get(job.id, (None, 0))) for job, attempt in rows]


async def _checkpoints(session: AsyncSession, ids: Select[str]) -> dict[str, tuple[int | None, int]]:
    """By job: the step of its newest checkpoint, and how many of them are kept."""
    query = (
        select(CheckpointRow.job_id, func.max(CheckpointRow.step), func.count())
        .where(CheckpointRow.job_id.in_(ids), CheckpointRow.pruned_at.is_(None))
        .group_by(CheckpointRow.job_id)
    )
    return {job: (newest, count) for job, newest, count in (await session.execute(query)).all()}


def _job(row: JobRow, attempt: AttemptRow | None, newest: int | None, live: int) -> Job:
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
        attempt=_attempt(attempt) if attempt is not None else None,
        fruitless=row.fruitless,
        worker_errors=row.worker_errors,
        ran_for=row.ran_for,
        not_before=row.not_before,
        retry_requested=row.retry_requested,
        newest_checkpoint=newest,
        live_checkpoints=live,
        deleted=row.deleted_at is not None,
    )


def _attempt(row: AttemptRow) -> Attempt:
    return Attempt(
        number=row.number,
        object_name=row.object_name,
        created_at=row.created_at,
        uid=row.uid,
        accepted_at=row.accepted_at,
        ended_at=row.ended_at,
        progressed_at=row.progressed_at,
        began_with_step=row.began_with_step,
        stopping_since=row.stopping_since,
        stop_reason=Reason(row.stop_reason) if row.stop_reason else None,
        termination=Termination.model_validate(row.termination) if row.termination else None,
        reason=Reason(row.reason) if row.reason else None,
        message=row.message,
        cleaned=row.cleaned,
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
