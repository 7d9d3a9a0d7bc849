"""What an admin may say of an attempt, where the cluster cannot tell."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from api.domain.job import Phase
from api.store import events, jobs
from api.store.jobs import Conflict
from api.store.tables import AttemptRow


class NoSuchAttempt(LookupError):
    """The job has no attempt of this number."""


async def confirm_dead(session: AsyncSession, job_id: str, project: str, number: int) -> AttemptRow:
    """Records that nothing of the attempt runs any more. Where it is said already, nothing changes.

    Only of an attempt that is being ended, whose reports are refused: one that still may report is ended first. Raises
    NoSuchJob, NoSuchAttempt, Conflict.
    """
    job = await jobs.get(session, job_id, project, lock=True)
    query = select(AttemptRow).where(AttemptRow.job_id == job_id, AttemptRow.number == number)
    attempt = await session.scalar(query.with_for_update())
    if attempt is None:
        raise NoSuchAttempt(f"{job_id}-a{number}")
    if attempt.confirmed_dead:
        return attempt
    if attempt.ended_at is not None or number != job.attempt:
        raise Conflict(f"attempt {number} is over, and known to be")
    if job.phase != Phase.FINISHING:
        raise Conflict(
            f"attempt {number} may still report: the job is {job.phase}. Only an attempt that is being ended can be "
            "confirmed dead: `pause` or `cancel` the job first, and wait until it is finishing"
        )
    attempt.confirmed_dead = True
    said = f"an admin says that nothing of attempt {number} runs any more"
    await events.add(session, job, "ConfirmedDead", said, level="warning", source="api", attempt=number)
    return attempt
