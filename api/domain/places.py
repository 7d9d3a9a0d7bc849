"""Which queued jobs may start: the highest priority first, then the oldest, as long as there are places and quota."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from api.domain.job import ACTIVE, Desired, Job, Phase, Reason
from api.domain.quota import Ledger, Limit


@dataclass(frozen=True, slots=True)
class Turn:
    """Who may start now, in order; and who waits for a quota, with what to tell about it (None: not any more)."""

    start: list[Job]
    held: list[tuple[Job, str | None]] = field(default_factory=list)


def may_start(jobs: Iterable[Job], places: int, now: datetime, limits: Mapping[str, Limit] | None = None) -> Turn:
    """Who may start now. `jobs` are all that wait or take a place, `places` is how many may run, `limits` are by the
    id of a project."""
    jobs = list(jobs)
    free = places - sum(job.phase in ACTIVE for job in jobs)
    ledger = Ledger(limits or {}, jobs)
    turn = Turn([])
    for job in sorted((job for job in jobs if _waits(job, now)), key=_turn):
        # Also where no place is left: what is told of a quota does not depend on places.
        said = ledger.admit(job)
        if said is None and len(turn.start) < free:
            turn.start.append(job)
        elif said is not None or job.reason is Reason.QUOTA_WAIT:
            turn.held.append((job, said))
    return turn


def ahead_of(job: Job, jobs: Iterable[Job], now: datetime) -> int:
    """How many of `jobs` get a place before `job` does."""
    return sum(_turn(other) < _turn(job) for other in jobs if other.id != job.id and _waits(other, now))


def _turn(job: Job) -> tuple[int, datetime, str]:
    return -job.priority, job.created_at, job.id


def _waits(job: Job, now: datetime) -> bool:
    return (
        job.phase is Phase.QUEUED
        and job.desired is Desired.RUN
        and not job.deleted
        and not job.needs
        and (job.not_before is None or job.not_before <= now)
        # What is left of the attempt before it goes first.
        and (job.attempt is None or job.attempt.cleaned)
    )
