"""What the operator writes about jobs. Each transaction is fenced by the leader's row, and guarded by what the decision
was made from: where the job has moved on since, nothing is written, and the operator looks again.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.dml import ReturningUpdate

from api.domain.decide import Note, Tell
from api.domain.job import FINAL, Attempt, Desired, Fault, Job, Phase, Reason
from api.domain.lifecycle import check
from api.domain.outcome import Outcome
from api.store import events
from api.store.database import utcnow
from api.store.operations_leader import Lease, held, require
from api.store.operations_models import register
from api.store.tables import AttemptRow, JobRow, Project
from worker.contract.protocol import Level

# What a person reads of each phase; the message is the decision's own.
_EVENTS: dict[Phase, str] = {
    Phase.QUEUED: "Queued",
    Phase.STARTING: "Starting",
    Phase.RUNNING: "Running",
    Phase.FINISHING: "Finishing",
    Phase.PAUSED: "Paused",
    Phase.SUCCEEDED: "Succeeded",
    Phase.FAILED: "Failed",
    Phase.CANCELLED: "Cancelled",
}


# What a decision rests on: where one of these is another by now, nothing is written.
_GUARDED = (JobRow.phase, JobRow.attempt, JobRow.desired, JobRow.retry_requested, JobRow.deleted_at)


class Stale(Exception):
    """The job is not what it was when the decision was made."""


def object_name(job_id: str, attempt: int, namespace: str | None = None) -> str:
    """The name of an attempt's objects, which follows from job and attempt; before it the namespace that its project
    has of its own."""
    name = f"{job_id}-a{attempt}"
    return name if namespace is None else f"{namespace}/{name}"


def begin_attempts(connection: Connection, lease: Lease, jobs: Sequence[Job], now: datetime) -> dict[str, Job]:
    """Records the next attempt of each job, before anything of it is created; a job that has moved on is passed over.
    Gives by their ids those that begin, as they are then. Raises NotLeader.

    All in one transaction, and a few statements: of a burst of jobs none waits for those before it.
    """
    held(connection, lease)
    query = select(JobRow.id, *_GUARDED, JobRow.event_count, JobRow.started_at)
    # In one order, so that nobody waits for a row while he holds another's.
    query = query.where(JobRow.id.in_([job.id for job in jobs])).order_by(JobRow.id).with_for_update()
    rows = {row.id: row for row in connection.execute(query)}
    places = _namespaces(connection, {job.project_id for job in jobs})
    begun = {
        job.id: _begun(job, places[job.project_id], now) for job in jobs if job.id in rows and _same(job, rows[job.id])
    }
    if not begun:
        return {}
    attempts = [(id, job.attempt) for id, job in begun.items() if job.attempt is not None]
    connection.execute(
        insert(AttemptRow),
        [
            {
                "job_id": id,
                "number": attempt.number,
                "object_name": attempt.object_name,
                "created_at": now,
                "began_with_step": attempt.began_with_step,
                "cleaned": False,
                "confirmed_dead": False,
                "message": "",
                "last_seq": 0,
                "mark": 0,
            }
            for id, attempt in attempts
        ],
    )
    for job in begun.values():
        check(Phase.QUEUED, job.phase)
    connection.execute(
        update(JobRow).where(JobRow.id == bindparam("of")).values(
            phase=Phase.STARTING, phase_since=now, reason=None, fault=None, message="", not_before=None, activity=None,
            attempt=bindparam("number"), started_at=bindparam("started"), event_count=bindparam("events"),
        ),
        [
            {
                "of": id,
                "number": attempt.number,
                "started": rows[id].started_at or now,
                "events": rows[id].event_count + 1,
            }
            for id, attempt in attempts
        ],
    )  # fmt: skip
    for id, attempt in attempts:
        step = attempt.began_with_step
        said = f"attempt {attempt.number}" + ("" if step is None else f", after the checkpoint of step {step}")
        events.append(connection, id, rows[id].event_count + 1, _EVENTS[Phase.STARTING], said, attempt.number, now)
    return begun


def _namespaces(connection: Connection, projects: Collection[str]) -> dict[str, str | None]:
    """The namespace that each of the projects has of its own, by the project's id."""
    query = select(Project.id, Project.namespace).where(Project.id.in_(projects))
    return {row.id: row.namespace for row in connection.execute(query)}


def _begun(job: Job, namespace: str | None, now: datetime) -> Job:
    """The job with its next attempt."""
    number = job.attempt.number + 1 if job.attempt is not None else 1
    name = object_name(job.id, number, namespace)
    attempt = Attempt(number, name, created_at=now, began_with_step=job.newest_checkpoint)
    return replace(
        job, phase=Phase.STARTING, phase_since=now, reason=None, message="", not_before=None, saved=False,
        attempt=attempt,
    )  # fmt: skip


async def record_uid(session: AsyncSession, lease: Lease, job: Job, uid: str) -> None:
    """Records the UID of the objects that were created for the current attempt. Raises NotLeader, Stale."""
    await locked(session, lease, job)
    await _attempt(session, job, {"uid": uid})


def move(
    connection: Connection,
    lease: Lease,
    job: Job,
    phase: Phase,
    now: datetime,
    *,
    reason: Reason | None = None,
    message: str = "",
    fresh: bool = False,
    fault: Fault | None = None,
) -> None:
    """Changes a job's phase; `fresh` starts all counts again, as `retry` asks. Raises IllegalMove, NotLeader, Stale."""
    # Columns, and for `Database.put`: where many jobs start at once, this takes its turn among their reports.
    held(connection, lease)
    row = connection.execute(
        select(*_GUARDED, JobRow.event_count).where(JobRow.id == job.id).with_for_update()
    ).one_or_none()
    if row is None:
        raise Stale(f"{job.id} is gone")
    _check_same(job, row)
    number = row.event_count + 1
    values: dict[str, Any] = {"reason": reason, "fault": fault, "message": message, "event_count": number}
    if fresh:
        values |= {"retry_requested": False, "fruitless": 0, "worker_errors": 0, "ran_for": 0.0, "not_before": None}
    if phase in FINAL:
        values |= {"finished_at": now, "activity": None}
    elif job.phase in FINAL:
        values["finished_at"] = None
    if connection.execute(_moved(job, phase, now, values)).first() is None:
        raise _stale(job)
    attempt = job.attempt.number if job.attempt is not None else None
    level: Level = "error" if phase is Phase.FAILED else "info"
    events.append(connection, job.id, number, _EVENTS[phase], message, attempt, now, level)


def record_image(connection: Connection, job: Job, image: str) -> None:
    """Records what image the current attempt runs, in the transaction of a guarded move."""
    connection.execute(
        update(AttemptRow)
        .where(AttemptRow.job_id == job.id, AttemptRow.number == _current(job).number)
        .values(image=image)
    )


def first_image(connection: Connection, job_id: str) -> str | None:
    """The image of the job's first attempt that ran one; None: none is known."""
    wanted = select(AttemptRow.image).where(AttemptRow.job_id == job_id, AttemptRow.image.is_not(None))
    found: str | None = connection.execute(wanted.order_by(AttemptRow.number).limit(1)).scalar()
    return found


def tell(connection: Connection, lease: Lease, job: Job, told: Tell) -> None:
    """Says what a job waits for, in its phase; a reason that is new becomes an event. Raises NotLeader, Stale."""
    held(connection, lease)
    row = connection.execute(
        select(*_GUARDED, JobRow.reason, JobRow.event_count).where(JobRow.id == job.id).with_for_update()
    ).one_or_none()
    if row is None:
        raise Stale(f"{job.id} is gone")
    _check_same(job, row)
    values: dict[str, Any] = {"reason": told.reason, "message": told.message}
    if told.reason is not None and told.reason != row.reason:
        values["event_count"] = row.event_count + 1
        number = job.attempt.number if job.attempt is not None else None
        events.append(
            connection, job.id, row.event_count + 1, told.reason.value, told.message, number, utcnow(), "warning"
        )
    connection.execute(update(JobRow).where(JobRow.id == job.id).values(**values))


async def stop_attempt(
    session: AsyncSession, lease: Lease, job: Job, now: datetime, *, reason: Reason | None, message: str
) -> None:
    """Records that the current attempt is asked to end, and why; the first reason counts. Raises NotLeader, Stale."""
    row = await locked(session, lease, job)
    attempt = _current(job)
    if attempt.stopping_since is not None and (reason is None or attempt.stop_reason is not None):
        return
    values: dict[str, Any] = {"stopping_since": attempt.stopping_since or now}
    if reason is not None:
        values |= {"stop_reason": reason, "message": message}
    await _attempt(session, job, values)
    wish = {Desired.PAUSE: "its owner wants a pause", Desired.CANCEL: "its owner cancels it"}.get(job.desired, "")
    level: Level = "info" if reason is None else "warning"
    told = f"{reason}: {message}" if reason is not None else wish
    await events.add(session, row, "Stopping", told, level=level, attempt=attempt.number)


async def settle(
    session: AsyncSession, lease: Lease, job: Job, outcome: Outcome, now: datetime, *, notes: Sequence[Note] = ()
) -> None:
    """Records how the attempt ended and what becomes of the job; models are registered with a success, in one
    transaction. `notes` are warnings that become events. Raises IllegalMove, NotLeader, Stale.
    """
    row = await locked(session, lease, job)
    attempt = _current(job)
    for note in notes:
        await events.add(session, row, note.type, note.message, level="warning", attempt=attempt.number)
    end = outcome.ending
    await _attempt(
        session,
        job,
        {
            "ended_at": outcome.ended_at,
            "exit_code": outcome.exit_code,
            "termination": outcome.termination.model_dump(mode="json") if outcome.termination else None,
            "reason": end.reason,
            "fault": end.fault,
            "message": end.message,
        },
    )
    values: dict[str, Any] = {
        "reason": outcome.reason,
        "fault": outcome.fault,
        "message": outcome.message,
        "ran_for": outcome.ran_for,
        "fruitless": outcome.fruitless,
        "worker_errors": outcome.worker_errors,
        "not_before": outcome.not_before,
        "activity": None,
    }
    if outcome.phase in FINAL:
        values["finished_at"] = now
    if outcome.reason is Reason.PAUSED_BY_GUARD:
        # What its owner would have asked for: only they let it go on.
        values["desired"] = Desired.PAUSE
    await _move(session, job, outcome.phase, now, values)
    if end.reason is not None:
        said = f"attempt {attempt.number}: {end.reason}: {end.message}"
        await events.add(session, row, "AttemptFailed", said, level="error", attempt=attempt.number)
    if outcome.phase is Phase.SUCCEEDED and outcome.termination is not None:
        for model in await register(session, row, attempt.number, outcome.termination, now):
            said = f"{model.name} version {model.version} ({model.kind}): {model.id}"
            await events.add(session, row, "ModelRegistered", said, attempt=attempt.number)
    level: Level = "error" if outcome.phase is Phase.FAILED else "info"
    told = outcome.message or ("" if outcome.phase is Phase.SUCCEEDED else outcome.reason.value)
    await events.add(session, row, _EVENTS[outcome.phase], told, level=level, attempt=attempt.number)


async def mark_cleaned(session: AsyncSession, lease: Lease, job: Job) -> None:
    """Records that nothing is left of the attempt's objects. Raises NotLeader, Stale."""
    await locked(session, lease, job)
    await _attempt(session, job, {"cleaned": True})


async def locked(session: AsyncSession, lease: Lease, job: Job) -> JobRow:
    """The job's row, locked, if it is still what the decision was made from."""
    await require(session, lease)
    row = await session.get(JobRow, job.id, with_for_update=True, populate_existing=True)
    if row is None:
        raise Stale(f"{job.id} is gone")
    _check_same(job, row)
    return row


def _check_same(job: Job, row: Any) -> None:
    """Raises Stale unless the job's row, or its columns, are as they were when the decision was made."""
    if not _same(job, row):
        raise Stale(f"{job.id} is not what it was")


def _same(job: Job, row: Any) -> bool:
    number = job.attempt.number if job.attempt is not None else 0
    now = (row.phase, row.attempt, row.desired, row.retry_requested, row.deleted_at is not None)
    return bool(now == (job.phase, number, job.desired, job.retry_requested, job.deleted))


async def _move(session: AsyncSession, job: Job, phase: Phase, now: datetime, values: dict[str, Any]) -> None:
    if (await session.execute(_moved(job, phase, now, values))).first() is None:
        raise _stale(job)


def _moved(job: Job, phase: Phase, now: datetime, values: dict[str, Any]) -> ReturningUpdate[str]:
    """The guarded update: it gives a row only where the job is still in its phase, with its attempt."""
    check(job.phase, phase)
    number = job.attempt.number if job.attempt is not None else 0
    return (
        update(JobRow)
        .where(JobRow.id == job.id, JobRow.phase == job.phase, JobRow.attempt == number)
        .values(phase=phase, phase_since=now, **values)
        .returning(JobRow.id)
        .execution_options(synchronize_session=False)
    )


def _stale(job: Job) -> Stale:
    return Stale(f"{job.id} is not in {job.phase} any more, or not with its attempt")


async def _attempt(session: AsyncSession, job: Job, values: dict[str, Any]) -> None:
    number = _current(job).number
    await session.execute(
        update(AttemptRow)
        .where(AttemptRow.job_id == job.id, AttemptRow.number == number)
        .values(**values)
        .execution_options(synchronize_session=False)
    )


def _current(job: Job) -> Attempt:
    if job.attempt is None:
        raise Stale(f"{job.id} has no attempt")
    return job.attempt
