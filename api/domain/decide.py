"""What to do about one job: a pure function of the job, what its cluster says, and the time.

Every action may be done twice, and is done again after a restart: nothing is remembered but what is stored.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from api.domain.job import FINAL, Attempt, Desired, Fault, Job, Phase, Reason
from api.domain.observation import Observation
from api.domain.outcome import Backoff, Outcome, running_time, settle
from api.domain.pipeline import broken, ready, waits_for


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator decides by; the rest is in the job's spec."""

    backoff: Backoff = field(default_factory=Backoff)
    short_grace: float = 10.0
    """Seconds for an attempt that has nothing to save, or had its time to."""


@dataclass(frozen=True, slots=True)
class Note:
    """A warning that a person should read: an event's type, and a sentence."""

    type: str
    message: str


@dataclass(frozen=True, slots=True)
class Begin:
    """Record a new attempt: the job goes from `queued` to `starting`."""


@dataclass(frozen=True, slots=True)
class Ensure:
    """Create the attempt's objects, unless they are there."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask the attempt to end within `grace` seconds; the first time, `reason` is recorded with it."""

    grace: float
    reason: Reason | None = None
    message: str = ""
    record: bool = True


@dataclass(frozen=True, slots=True)
class Move:
    """Change the phase. `reason` None clears it; `fresh` starts all counts again."""

    phase: Phase
    reason: Reason | None = None
    message: str = ""
    fresh: bool = False
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Tell:
    """Say what the job waits for, in the phase that it is in; both empty: for nothing any more."""

    reason: Reason | None
    message: str


@dataclass(frozen=True, slots=True)
class Resolve:
    """Fill in the inputs that other steps of the pipeline have handed over."""


@dataclass(frozen=True, slots=True)
class Collect:
    """Store the attempt's logs, take in its left-over reports, and check its outputs."""


@dataclass(frozen=True, slots=True)
class Settle:
    """Record how the attempt ended, and what becomes of the job."""

    outcome: Outcome
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class CleanUp:
    """Remove the objects of an attempt that is over; its outcome and logs are stored."""


@dataclass(frozen=True, slots=True)
class Prune:
    """Remove the oldest checkpoints, down to `checkpoint.keep`."""


@dataclass(frozen=True, slots=True)
class Purge:
    """Remove a deleted job: its checkpoints, logs and row. Models stay."""


Action = Begin | Resolve | Ensure | Stop | Move | Tell | Collect | Settle | CleanUp | Prune | Purge


@dataclass(frozen=True, slots=True)
class Collected:
    """What came of Collect."""

    spoilt: str | None = None
    """What is wrong with the outputs of an attempt that exited with 0."""
    notes: tuple[Note, ...] = ()


def decide(
    job: Job,
    seen: Observation | None,
    now: datetime,
    *,
    up_since: datetime,
    place: bool = False,
    collected: Collected | None = None,
    rules: Rules = Rules(),
) -> list[Action]:
    """The next actions for `job`.

    `seen` is None where the cluster did not answer: then nothing is done that rests on it. `up_since` is when this
    control plane started (reports could not arrive before it). `place`: the job may start now. `collected`: Collect
    was done for this attempt, with this result.
    """
    match job.phase:
        case Phase.QUEUED:
            return _queued(job, now, place)
        case Phase.PAUSED:
            return _tidy(job) or _paused(job)
        case Phase.STARTING | Phase.RUNNING | Phase.FINISHING if job.attempt is not None and seen is not None:
            if job.phase is Phase.FINISHING:
                return _finishing(job, job.attempt, seen, now, collected=collected, rules=rules)
            if job.phase is Phase.STARTING:
                return _starting(job, job.attempt, seen, now, up_since)
            return _running(job, job.attempt, seen, now, up_since=up_since, rules=rules)
        case Phase.FAILED if job.retry_requested and not job.deleted:
            return _tidy(job) or [_queue(job, "its owner asked to try again", fresh=True)]
    if job.phase in FINAL and job.deleted:
        return _tidy(job) or [Purge()]
    if job.phase in FINAL:
        # Pruned first: once it is tidy, nobody looks at a final job any more.
        return [*_prune(job), *_tidy(job)]
    return []


def confirmed_dead(seen: Observation) -> Observation:
    """What is seen of an attempt that an admin says is dead."""
    if not seen.alive:
        return seen
    said = seen.held or "an admin confirmed that nothing of it runs"
    return Observation(exists=True, uid=seen.uid, reason=Reason.NODE_LOST, message=said)


def watched(job: Job) -> bool:
    """Whether deciding about the job takes a look at its cluster."""
    return job.phase in (Phase.STARTING, Phase.RUNNING, Phase.FINISHING)


def _queued(job: Job, now: datetime, place: bool) -> list[Action]:
    if job.desired is Desired.CANCEL:
        return [*_tidy(job), Move(Phase.CANCELLED, Reason.CANCELLED_BY_USER, "cancelled by its owner")]
    if job.desired is Desired.PAUSE:
        return [*_tidy(job), Move(Phase.PAUSED, Reason.PAUSED_BY_USER, "paused by its owner")]
    if tidy := _tidy(job):
        return tidy
    if job.needs:
        if (never := broken(job.needs)) is not None:
            return [Move(Phase.FAILED, Reason.DEPENDENCY_FAILED, never.message, fault=never.fault)]
        return [Resolve()] if ready(job.needs) else []
    if place and (job.not_before is None or job.not_before <= now):
        return [Begin()]
    return _prune(job)


def _paused(job: Job) -> list[Action]:
    if job.desired is Desired.CANCEL:
        return [Move(Phase.CANCELLED, Reason.CANCELLED_BY_USER, "cancelled by its owner")]
    if job.desired is Desired.RUN:
        return [_queue(job, "its owner wants it to go on")]
    return _prune(job)


def _queue(job: Job, message: str, *, fresh: bool = False) -> Move:
    """Back to the queue, where a step whose inputs are not all there waits on."""
    if job.needs:
        return Move(Phase.QUEUED, Reason.AWAITING_STEP, waits_for(need.step for need in job.needs), fresh)
    return Move(Phase.QUEUED, message=message, fresh=fresh)


def _starting(job: Job, attempt: Attempt, seen: Observation, now: datetime, up_since: datetime) -> list[Action]:
    since = max(filter(None, (attempt.created_at, up_since, seen.admitted_at)))
    late = not seen.suspended and (now - since).total_seconds() > job.spec.limits.start
    if not seen.exists:
        # Nothing was created yet, so there is nothing to wait for where nobody wants it any more.
        if job.desired is not Desired.RUN or attempt.stop_reason is not None:
            return [Move(Phase.FINISHING)]
        return _too_late(job, job.reason, job.message) if late else [Ensure()]
    if not seen.alive or seen.orphaned:
        return [Move(Phase.FINISHING)]
    if attempt.accepted_at is not None:
        return [Move(Phase.RUNNING)]
    if seen.failing or job.desired is not Desired.RUN:
        return [Move(Phase.FINISHING)]
    if late and seen.running:
        message = f"it runs, and did not report within limits.start ({job.spec.limits.start:g} s): {_UNHEARD}"
        return [Stop(0.0, Reason.STALLED, message), Move(Phase.FINISHING)]
    if late:
        return _too_late(job, Reason(seen.holds) if seen.holds else None, seen.held)
    if seen.running and (now - since).total_seconds() > _QUIET_START:
        seen = replace(seen, held=f"it runs, and has not reported yet: {_UNHEARD}")
    return _tell(job, seen)


# Seconds after which a program that runs should have reported; imports take some of them on a busy node.
_QUIET_START = 60.0
_UNHEARD = "do its pods reach WORKER_URL, and each other?"


def _too_late(job: Job, held_by: Reason | None, words: str) -> list[Action]:
    """An attempt that took too long to start: the cluster's own word for it where there is one."""
    reason = Reason.IMAGE_PULL if held_by is Reason.IMAGE_PULL else Reason.UNSCHEDULABLE
    message = f"it did not report within limits.start ({job.spec.limits.start:g} s)" + (f": {words}" if words else "")
    return [Stop(0.0, reason, message), Move(Phase.FINISHING)]


def _tell(job: Job, seen: Observation) -> list[Action]:
    """Has what the cluster says of a wait be shown, where that has changed."""
    reason = Reason(seen.holds) if seen.holds is not None else None
    return [Tell(reason, seen.held)] if (reason, seen.held) != (job.reason, job.message) else []


def _running(
    job: Job, attempt: Attempt, seen: Observation, now: datetime, *, up_since: datetime, rules: Rules
) -> list[Action]:
    # Who waits again, with no pod left, would begin once more under the same number.
    if not seen.alive or seen.orphaned or seen.failing or seen.suspended:
        return [Move(Phase.FINISHING)]
    limits, grace = job.spec.limits, job.spec.checkpoint.grace
    if attempt.stopping_since is not None:
        if now >= attempt.stopping_since + timedelta(seconds=grace):
            return [Stop(0.0, record=False), Move(Phase.FINISHING)]
        return [Stop(grace, record=False)]
    if job.desired is not Desired.RUN:
        return [Stop(grace)]
    ran = job.ran_for + running_time(attempt, now)
    if limits.wall_clock is not None and ran > limits.wall_clock:
        message = f"it ran for longer than limits.wall_clock ({limits.wall_clock:g} s over all attempts)"
        return [Stop(grace, Reason.DEADLINE_EXCEEDED, message)]
    began = attempt.accepted_at or attempt.created_at
    progressed, heard = max(attempt.progressed_at or began, up_since), attempt.reported_at or began
    # By its own word alone. Who is not heard may train on, and its reports wait beside its checkpoints: were it ended
    # for that, a service that answers no worker for half an hour would end them all.
    if (heard - progressed).total_seconds() > limits.stall:
        message = f"it made no step, load or save within limits.stall ({limits.stall:g} s)"
        return [Stop(rules.short_grace, Reason.STALLED, message), Move(Phase.FINISHING)]
    return [*_prune(job), *_tell(job, seen)]


def _finishing(
    job: Job, attempt: Attempt, seen: Observation, now: datetime, *, collected: Collected | None, rules: Rules
) -> list[Action]:
    if seen.alive:
        # The cluster counts from its first call, and takes the earlier end: asking again delays nothing.
        unrecorded = attempt.stopping_since is None
        if unrecorded and seen.suspended and attempt.accepted_at is not None:
            return [Stop(rules.short_grace, Reason.PREEMPTED, seen.held or "the queue took its place back")]
        if unrecorded and seen.orphaned:
            reason = Reason(seen.reason) if seen.reason is not None else Reason.KILLED
            return [Stop(rules.short_grace, reason, seen.message or "its launcher was killed")]
        # Where nobody wished it, nobody asked it to end: the cause shows once it is over. `failing` does not tell all:
        # a pod that failed can be gone before its Job says so.
        wished = job.desired is not Desired.RUN and not seen.failing
        return [Stop(rules.short_grace, record=unrecorded and wished), *_tell(job, seen)]
    if collected is None:
        return [Collect()]
    return [Settle(settle(job, attempt, seen, now, backoff=rules.backoff, spoilt=collected.spoilt), collected.notes)]


def _tidy(job: Job) -> list[Action]:
    return [CleanUp()] if job.attempt is not None and not job.attempt.cleaned else []


def _prune(job: Job) -> list[Action]:
    return [Prune()] if job.live_checkpoints > job.spec.checkpoint.keep else []
