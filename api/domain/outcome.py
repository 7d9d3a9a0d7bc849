"""How an attempt ended, and what follows for its job: the table of the design, as code without a clock or I/O."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from api.domain.job import FAULTS, Attempt, Desired, Fault, Job, Phase, Reason
from api.domain.observation import Observation
from worker.contract.protocol import Exit, Termination

# Exit codes that are the user's to mend; a worker says them only of itself.
_USER_EXITS = {
    Exit.BAD_SPEC: Reason.INVALID_SPEC,
    Exit.BAD_DATA: Reason.INVALID_DATA,
    Exit.DIVERGED: Reason.DIVERGED,
    Exit.OUT_OF_MEMORY: Reason.OUT_OF_MEMORY,
}
# What a worker alone can know of its surroundings, and no exit code says.
_TOLD_BY_WORKERS = frozenset({Reason.STORE_FULL, Reason.SERVICE_AWAY})
# Another try meets the same wall: an admin, or the owner, must act first.
_HOPELESS = frozenset(
    {
        Reason.IMAGE_PULL,
        Reason.UNSCHEDULABLE,
        Reason.STORE_FULL,
        Reason.NAME_CONFLICT,
        Reason.FORBIDDEN,
        Reason.NAMESPACE_GONE,
    }
)
_WISHES = {
    Desired.CANCEL: (Phase.CANCELLED, Reason.CANCELLED_BY_USER, "cancelled by its owner"),
    Desired.PAUSE: (Phase.PAUSED, Reason.PAUSED_BY_USER, "paused by its owner"),
}


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended: `reason` and `fault` are None where it ended as it was asked to."""

    reason: Reason | None
    message: str

    @property
    def fault(self) -> Fault | None:
        """Whose failure it was."""
        return FAULTS.get(self.reason) if self.reason is not None else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a job whose attempt is over: its phase, and the counts that the next decision rests on."""

    phase: Phase
    reason: Reason
    message: str
    ending: Ending
    termination: Termination | None
    exit_code: int | None
    ended_at: datetime
    ran_for: float
    fruitless: int
    worker_errors: int
    not_before: datetime | None = None

    @property
    def fault(self) -> Fault | None:
        """Whose failure the job's phase is; None where it is none."""
        return FAULTS.get(self.reason) if self.phase in (Phase.FAILED, Phase.QUEUED) else None


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds before the next attempt: `first` x 2^n, at most `longest`."""

    first: float = 10.0
    longest: float = 300.0

    def after(self, fruitless: int) -> timedelta:
        """The wait after `fruitless` attempts in a row without a new checkpoint."""
        return timedelta(seconds=min(self.longest, self.first * 2.0 ** min(max(0, fruitless - 1), 60)))


def succeeded(attempt: Attempt, seen: Observation, spoilt: str | None) -> bool:
    """Whether the cluster saw the attempt end well, with what it promised in place."""
    words = seen.termination or attempt.termination
    return seen.exit_code == Exit.DONE and spoilt is None and (words is None or words.outcome == "succeeded")


def ending(job: Job, attempt: Attempt, seen: Observation, spoilt: str | None = None) -> Ending:
    """Why the attempt ended. `spoilt` says what is wrong with the outputs of one that exited with 0."""
    words = seen.termination or attempt.termination
    said = (words.message if words else "") or seen.message
    if succeeded(attempt, seen, spoilt):
        return Ending(None, said)
    if seen.exit_code in _USER_EXITS:
        return Ending(_USER_EXITS[Exit(seen.exit_code)], said)
    if attempt.stop_reason is not None:
        return Ending(attempt.stop_reason, attempt.message or said)
    if _as_asked(job, attempt, seen) or paused_by_guard(attempt, seen):
        return Ending(None, said)
    if seen.exit_code == Exit.DONE:
        return Ending(Reason.WORKER_ERROR, spoilt or said or "it exited with 0, and says that it did not succeed")
    if seen.reason is not None:
        known = {reason.value for reason in Reason}
        # The cluster knows why; the worker, only that it was told to.
        return Ending(Reason(seen.reason) if seen.reason in known else Reason.KILLED, seen.message or said)
    if seen.exit_code == Exit.STOPPED:
        return Ending(Reason.PREEMPTED, said or "it was told to stop, by nobody here")
    if seen.exit_code is None or seen.exit_code < 0 or seen.exit_code == Exit.KILLED:
        return Ending(Reason.KILLED, said or "a process of it was killed")
    if words is not None and words.reason in _TOLD_BY_WORKERS:
        return Ending(Reason(words.reason), said)
    return Ending(Reason.WORKER_ERROR, said or f"it exited with {seen.exit_code}")


def paused_by_guard(attempt: Attempt, seen: Observation) -> bool:
    """Whether the worker stopped by itself, having saved, for a person to look."""
    words = seen.termination or attempt.termination
    return seen.exit_code == Exit.STOPPED and words is not None and words.reason == Reason.PAUSED_BY_GUARD


def _as_asked(job: Job, attempt: Attempt, seen: Observation) -> bool:
    """Whether it ended because it was asked to, by its owner's wish."""
    stopped = seen.exit_code in (None, Exit.STOPPED, Exit.KILLED)
    if attempt.stopping_since is not None:
        # Killed after its grace is ended as asked, too.
        return stopped
    # Its reports may have told it of the wish before it was signalled.
    return job.desired is not Desired.RUN and (seen.exit_code == Exit.STOPPED or attempt.accepted_at is None)


def settle(
    job: Job, attempt: Attempt, seen: Observation, now: datetime, *, backoff: Backoff, spoilt: str | None = None
) -> Outcome:
    """What follows from the end of an attempt.

    The order: success, cancel, user fault, pause, next attempt, failed. So a wish that races a clean end is a success.
    """
    end = ending(job, attempt, seen, spoilt)
    well = succeeded(attempt, seen, spoilt)
    fruitless = 0 if job.saved or well else job.fruitless + (end.reason is not None)
    worker_errors = job.worker_errors + (end.reason is Reason.WORKER_ERROR)
    ended_at = min(now, max(attempt.created_at, attempt.ended_at or seen.ended_at or now))

    def becomes(phase: Phase, reason: Reason, message: str, not_before: datetime | None = None) -> Outcome:
        return Outcome(
            phase=phase,
            reason=reason,
            message=message,
            ending=end,
            termination=seen.termination or attempt.termination,
            exit_code=seen.exit_code,
            ended_at=ended_at,
            ran_for=job.ran_for + running_time(attempt, ended_at),
            fruitless=fruitless,
            worker_errors=worker_errors,
            not_before=not_before,
        )

    if well:
        return becomes(Phase.SUCCEEDED, Reason.FINISHED, end.message)
    if job.desired is Desired.CANCEL:
        return becomes(*_WISHES[Desired.CANCEL])
    if end.reason is not None and end.fault is Fault.USER:
        return becomes(Phase.FAILED, end.reason, end.message)
    if job.desired is Desired.PAUSE:
        return becomes(*_WISHES[Desired.PAUSE])
    if end.reason is None and paused_by_guard(attempt, seen):
        return becomes(Phase.PAUSED, Reason.PAUSED_BY_GUARD, end.message)
    if end.reason is None:
        # It stopped for a wish that was taken back since: go on at once.
        return becomes(Phase.QUEUED, Reason.BACK_OFF, "its owner wants it to run again")
    if end.reason in _HOPELESS:
        return becomes(Phase.FAILED, end.reason, end.message)
    if end.reason is Reason.WORKER_ERROR and worker_errors > 1:
        return becomes(Phase.FAILED, end.reason, f"the worker failed a second time: {end.message}")
    if fruitless >= job.spec.retry.max_attempts:
        tries = "1 attempt" if fruitless == 1 else f"{fruitless} attempts in a row"
        return becomes(Phase.FAILED, end.reason, f"{tries} made no new checkpoint; the last one: {end.message}")
    wait = backoff.after(fruitless)
    return becomes(
        Phase.QUEUED,
        Reason.BACK_OFF,
        f"{end.reason.value}: {end.message}; next attempt in {wait.total_seconds():g} s",
        now + wait,
    )


def running_time(attempt: Attempt, until: datetime) -> float:
    """Seconds that the attempt ran: from its first accepted report to its end, or to `until`."""
    if attempt.accepted_at is None:
        return 0.0
    return max(0.0, ((attempt.ended_at or until) - attempt.accepted_at).total_seconds())
