"""What a worker reports, taken in: one transaction, under the job's row lock, and cheap."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncSession

from api.domain.job import Desired, Phase
from api.store import curves, samples
from api.store.database import utcnow
from api.store.tables import AttemptRow, Base, CheckpointRow, EventRow, JobRow, MetricRow, SampleRow
from worker.contract.protocol import Answer, Finish, Metric, Report, Sample, Termination

# Statements that are made once: to put one together takes longer than to do it, and reports come by the hundred a
# second. Columns, not mapped objects, for the same reason.
_ATTEMPTS: Any = AttemptRow.__table__
_JOBS: Any = JobRow.__table__
_EVENTS: Any = EventRow.__table__
# Both rows are locked, so that whoever waited for the lock sees both as they are now.
_LOCK = (
    select(
        *(_JOBS.c[name] for name in ("id", "phase", "desired", "attempt", "event_count", "deleted_at")),
        *(
            _ATTEMPTS.c[name]
            for name in (
                "accepted_at",
                "ended_at",
                "stopping_since",
                "confirmed_dead",
                "launcher",
                "last_seq",
                "mark",
                "resumed_from",
                "termination",
                "summed",
                "summed_seq",
            )
        ),
    )
    .join_from(_JOBS, _ATTEMPTS, _ATTEMPTS.c.job_id == _JOBS.c.id)
    .where(_JOBS.c.id == bindparam("its_id"), _ATTEMPTS.c.number == bindparam("its_number"))
    .with_for_update()
)
_CHANGE_ATTEMPT = update(_ATTEMPTS).where(
    _ATTEMPTS.c.job_id == bindparam("its_job"), _ATTEMPTS.c.number == bindparam("its_number")
)
_ADD_EVENTS = insert(_EVENTS)
_CHANGE_JOB = update(_JOBS).where(_JOBS.c.id == bindparam("its_id"))
_EXIT_CODES = {"succeeded": 0, "failed": 1, "stopped": 143}


class AttemptOver(Exception):
    """The attempt is not, or no longer, the one that may speak: it must stop and save nothing."""


class JobGone(Exception):
    """The job was deleted."""


class Misplaced(ValueError):
    """A checkpoint or output that does not lie in the attempt's own folder."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer, and whether this was the attempt's first report."""

    answer: Answer
    first: bool = False


async def accept(session: AsyncSession, job_id: str, attempt: int, report: Report, late: bool = False) -> Accepted:
    """`take_in`, as a part of a session's transaction."""
    return await (await session.connection()).run_sync(take_in, job_id, attempt, report, late)


def take_in(connection: Connection, job_id: str, attempt: int, report: Report, late: bool = False) -> Accepted:
    """Takes in a report of one attempt; the same `seq` again changes nothing.

    `late` is for reports that the operator finds in the spool of an attempt that is over: they add history, and never
    change what the job does. Raises AttemptOver, JobGone, Misplaced.
    """
    row = _locked(connection, job_id, attempt)
    if not late:
        _check_live(attempt, row, report.launcher)
    folder = f"jobs/{job_id}/a{attempt}/"
    for checkpoint in report.checkpoints:
        if not checkpoint.path.startswith(folder):
            raise Misplaced(f"checkpoint {checkpoint.path} does not lie in {folder}")
    answer = Answer(desired=Desired(row.desired).value)
    if report.seq <= row.last_seq:
        return Accepted(answer)

    now = utcnow()
    changes: dict[str, Any] = {"last_seq": report.seq, "progress": report.progress.model_dump()}
    if not late:
        changes["reported_at"] = now
    if report.progress.mark > row.mark:
        changes |= {"mark": report.progress.mark, "progressed_at": now}
    first = row.accepted_at is None and not late
    if first:
        changes |= {"accepted_at": now, "progressed_at": now, "launcher": report.launcher}
    if report.resumed_from is not None and row.resumed_from is None:
        changes["resumed_from"] = report.resumed_from
        _supersede(connection, job_id, attempt, report.resumed_from)
    summed = row.summed
    if summed and row.summed_seq != row.last_seq:
        # The release before took in the last one, and what it told of is in no summary.
        curves.forget(connection, job_id, attempt)
        summed = changes["summed"] = None
    changes["summed_seq"] = report.seq
    if report.metrics:
        _add_by_step(connection, MetricRow, row, attempt, report.metrics)
        steps = {metric.step for metric in report.metrics}
        if summed is not None and not summed <= min(steps) <= max(steps) < summed + curves.SPAN:
            changes["summed"] = curves.sum_up(connection, job_id, attempt, summed, steps)
    if report.samples:
        _add_by_step(connection, SampleRow, row, attempt, report.samples)
        samples.make_room(connection, job_id)
    if report.checkpoints:
        values = [
            {"job_id": job_id, "attempt": attempt, "pruned_at": None, **checkpoint.model_dump()}
            for checkpoint in report.checkpoints
        ]
        insert_new(connection, CheckpointRow, values)
    connection.execute(_CHANGE_ATTEMPT, {"its_job": job_id, "its_number": attempt, **changes})
    of_job: dict[str, Any] = {}
    if attempt == row.attempt:
        of_job = {"progress": changes["progress"]} | ({} if late else {"activity": report.activity})
    if report.events:
        of_job["event_count"] = _add_events(connection, row, attempt, report)
    if of_job:
        connection.execute(_CHANGE_JOB, {"its_id": job_id, **of_job})
    return Accepted(answer, first)


def finish(connection: Connection, job_id: str, attempt: int, end: Finish) -> bool:
    """Keeps the attempt's own word of its end; the first one counts. Gives whether this was it.

    The operator decides what follows. Raises AttemptOver, JobGone, Misplaced.
    """
    row = _locked(connection, job_id, attempt)
    folder = f"jobs/{job_id}/a{attempt}/"
    for output in end.outputs:
        if not output.path.startswith(folder):
            raise Misplaced(f"output {output.path} does not lie in {folder}")
    if row.termination is not None:
        return False
    if attempt != row.attempt or row.ended_at is not None or row.accepted_at is None or row.confirmed_dead:
        raise AttemptOver(f"attempt {attempt} of {job_id} is over")
    termination = Termination(**end.model_dump(), exit_code=_EXIT_CODES[end.outcome])
    connection.execute(
        update(AttemptRow)
        .where(AttemptRow.job_id == job_id, AttemptRow.number == attempt)
        .values(termination=termination.model_dump(mode="json"))
    )
    return True


def insert_new(connection: Connection, table: type[Base], values: list[dict[str, Any]]) -> None:
    """Inserts the rows whose key is not there yet, and leaves the others as they are."""
    connection.execute(_insert_new(table, connection.dialect.name), values)


@cache
def _insert_new(table: type[Base], dialect: str) -> Any:
    build: Any = sqlite_insert if dialect == "sqlite" else postgresql_insert
    return build(table.__table__).on_conflict_do_nothing()


def _locked(connection: Connection, job_id: str, attempt: int) -> Any:
    """The columns of the job and of the attempt that a report looks at, under the job's row lock."""
    found = connection.execute(_LOCK, {"its_id": job_id, "its_number": attempt}).one_or_none()
    if found is None:
        if connection.scalar(select(JobRow.id).where(JobRow.id == job_id)) is None:
            raise JobGone(f"{job_id} is gone")
        raise AttemptOver(f"{job_id} has no attempt {attempt}")
    if found.deleted_at is not None:
        raise JobGone(f"{job_id} is gone")
    return found


def _check_live(attempt: int, row: Any, launcher: str | None) -> None:
    over = AttemptOver("this attempt is over: stop at once and save nothing")
    if attempt != row.attempt or row.ended_at is not None or row.phase not in (Phase.STARTING, Phase.RUNNING):
        raise over
    # Said of attempts that are being ended, which the line above refuses; a word that is never taken back.
    if row.confirmed_dead:
        raise over
    # A cluster may start an attempt's process once more, and the first one may still run: that one is live.
    if row.launcher is not None and launcher is not None and launcher != row.launcher:
        raise AttemptOver("another process speaks for this attempt: stop at once and save nothing")
    # Before its first answer an attempt has touched nothing: where it is not wanted any more, it never starts.
    if row.accepted_at is None and (
        row.phase != Phase.STARTING or row.desired != Desired.RUN or row.stopping_since is not None
    ):
        raise over


def _supersede(connection: Connection, job_id: str, attempt: int, step: int) -> None:
    """Marks what older attempts reported past the step that this one went on from."""
    for table in (MetricRow, SampleRow):
        connection.execute(
            update(table)
            .where(table.job_id == job_id, table.attempt < attempt, table.step >= curves.made_again_from(step))
            .values(superseded=True)
        )


def _add_by_step(
    connection: Connection, table: type[Base], job: Any, attempt: int, news: Sequence[Metric | Sample]
) -> None:
    resumed_from = None
    if attempt < job.attempt:
        resumed_from = connection.scalar(
            select(func.min(AttemptRow.resumed_from)).where(AttemptRow.job_id == job.id, AttemptRow.number > attempt)
        )
    values = [
        {
            "job_id": job.id,
            "attempt": attempt,
            "superseded": resumed_from is not None and one.step >= curves.made_again_from(resumed_from),
            **one.model_dump(),
        }
        for one in news
    ]
    insert_new(connection, table, values)


def _add_events(connection: Connection, job: Any, attempt: int, report: Report) -> int:
    number = int(job.event_count)
    values = []
    for event in report.events:
        number += 1
        values.append(
            {"job_id": job.id, "number": number, "source": "worker", "attempt": attempt, **event.model_dump()}
        )
    connection.execute(_ADD_EVENTS, values)
    return number
