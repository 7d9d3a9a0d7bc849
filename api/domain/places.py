"""Which queued jobs may start: the highest priority first, then the oldest, as long as there are places."""

from collections.abc import Iterable
from datetime import datetime

from api.domain.job import ACTIVE, Desired, Job, Phase


def may_start(jobs: Iterable[Job], places: int, now: datetime) -> list[Job]:
    """The jobs that may start now, in order. `jobs` are all that wait or take a place; `places` is how many may run."""
    jobs = list(jobs)
    free = places - sum(job.phase in ACTIVE for job in jobs)
    waiting = sorted((job for job in jobs if _waits(job, now)), key=_turn)
    return waiting[: max(0, free)]


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
