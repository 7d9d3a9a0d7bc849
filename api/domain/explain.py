"""Why a job does not run, or that all is well, and what to do: in sentences, from what is stored. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from api.domain.advice import ADVICE
from api.domain.case import Case, stands
from api.domain.job import ACTIVE, Attempt, Desired, Job, Phase, Reason
from api.domain.outcome import running_time
from api.domain.wording import listed, quoted, sentence, span
from worker.contract.protocol import Level

# Seconds without a report that are worth saying: workers report every few seconds.
_SILENCE = 60.0
_ATTEMPTS, _EVENTS = 3, 3
_SAID = frozenset({"AttemptFailed", "Failed", "Stopping", *Reason})
# Of these, the words are the cluster's own, or its queue's.
_CLUSTERS = frozenset(
    {
        Reason.IMAGE_PULL, Reason.UNSCHEDULABLE, Reason.QUOTA_WAIT, Reason.AWAITING_ADMISSION, Reason.FORBIDDEN,
        Reason.NAMESPACE_GONE, Reason.PREEMPTED,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tried:
    """An attempt that is over, and how it ended."""

    number: int
    ended_at: datetime
    reason: Reason | None = None
    """None: as it was asked to."""
    message: str = ""
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Happened:
    """A warning or an error among the job's events."""

    at: datetime
    type: str
    level: Level
    message: str


@dataclass(frozen=True, slots=True)
class Line:
    """How those stand that wait for a place, where the control plane gives places."""

    places: int
    taken: int
    ahead: int
    """Jobs that get a place before this one."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is stored of a job, as far as it explains anything."""

    job: Job
    now: datetime
    tried: tuple[Tried, ...] = ()
    """The attempts that are over, the first one first."""
    activity: str | None = None
    step: int | None = None
    steps: int | None = None
    events: tuple[Happened, ...] = ()
    """The newest warnings and errors of the newest attempt, the first one first."""
    line: Line | None = None
    """None: the cluster gives places, or the job does not wait for one."""
    kubernetes: bool = False
    pipeline: str | None = None
    led: bool = True
    """An operator acts now."""
    unheard: str | None = None
    """Why no operator hears what happens on the cluster, in the cluster's own words."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A sentence that says it, the facts behind it, and what to do or to type."""

    summary: str
    because: tuple[str, ...] = ()
    todo: tuple[str, ...] = ()


def explain(facts: Facts) -> Explanation:
    """Why the job is where it is, and what to do about it."""
    summary, todo = _said(facts)
    because = list(_because(facts))
    if facts.job.phase in (*ACTIVE, Phase.QUEUED):
        because[:0], todo[:0] = _operators(facts)
    return Explanation(sentence(summary), tuple(map(sentence, because)), tuple(map(sentence, dict.fromkeys(todo))))


def _operators(facts: Facts) -> tuple[list[str], list[str]]:
    """What is wrong with the operators, and what to do about it."""
    because, todo = [], []
    if not facts.led:
        because.append("No operator is at work now: nothing is started, stopped or noticed until one is")
        if facts.unheard is None:
            todo.append(
                "Start one: `rlhf serve`, or on a cluster the control plane's pods; `/livez` says how they are."
            )
    if facts.unheard is not None:
        who = "The operator does not" if facts.led else "One that tried did not"
        because.append(f"{who} hear what happens on the cluster: {quoted(facts.unheard)}")
        todo.append("Ask an admin to see to the operator's way to the API server, and to its role in the namespace.")
    return because, todo


def _said(facts: Facts) -> tuple[str, list[str]]:
    """The summary, and what to do."""
    match facts.job.phase:
        case Phase.QUEUED:
            return _queued(facts)
        case Phase.STARTING:
            return _starting(facts)
        case Phase.RUNNING:
            return _running(facts)
        case Phase.FINISHING:
            return _finishing(facts)
        case Phase.PAUSED:
            if facts.job.desired is Desired.RUN:
                return "it was paused, and goes on in a moment", []
            why = facts.job.reason or Reason.PAUSED_BY_USER
            return f"it is paused: {_means(why)}", _todo(facts, why)
        case Phase.SUCCEEDED:
            return "all is well: it succeeded", _todo(facts, Reason.FINISHED)
        case Phase.CANCELLED:
            return "it was cancelled by its owner", _todo(facts, Reason.CANCELLED_BY_USER)
        case Phase.FAILED:
            if facts.job.retry_requested:
                return "it failed, and is queued again in a moment", []
            return f"it failed: {_means(facts.job.reason, 'nobody says why')}", _todo(facts, facts.job.reason)


def _queued(facts: Facts) -> tuple[str, list[str]]:
    job = facts.job
    if job.desired is not Desired.RUN:
        return f"it is being {_WISHED[job.desired]}", []
    if job.needs:
        steps = listed(dict.fromkeys(need.step for need in job.needs if need.phase is not Phase.SUCCEEDED))
        waits = (
            f"it waits for the steps that it needs: {steps}" if steps else "what it needs is there: it starts at once"
        )
        return waits, _todo(facts, Reason.AWAITING_STEP) if steps else []
    if job.attempt is not None and not job.attempt.cleaned:
        return f"what is left of attempt {job.attempt.number} is removed first; then it starts again", []
    if job.not_before is not None and job.not_before > facts.now:
        last = facts.tried[-1] if facts.tried else None
        ended = f"attempt {last.number} ended early: {_means(last.reason)}" if last else "its last attempt ended early"
        todo = _todo(facts, last.reason if last is not None and last.reason is not None else Reason.BACK_OFF)
        return f"{ended}; the next one starts in {span((job.not_before - facts.now).total_seconds())}", todo
    if job.reason is Reason.QUOTA_WAIT:
        return "it waits for its project's quota", [
            f"Wait until others of the project end, give it a higher priority (it has {job.priority}), or ask an admin "
            "for more: `rlhf projects limit`."
        ]
    if (line := facts.line) is not None and (line.ahead or line.taken >= line.places):
        first = (
            "it is the next" if not line.ahead else f"{_jobs(line.ahead)} {'is' if line.ahead == 1 else 'are'} ahead"
        )
        return f"it waits for a place: {line.taken} of {line.places} taken, {first}", [
            f'Wait; or give it a higher priority (it has {job.priority}): `PATCH /v1/jobs/{job.id}` with {{"priority": '
            f"{job.priority + 1}}}. LOCAL_JOBS says how many run at once.",
        ]
    return "it starts in a moment", []


def _starting(facts: Facts) -> tuple[str, list[str]]:
    job, number = facts.job, _number(facts.job)
    if (ending := _ending(job)) is not None:
        return ending, []
    if job.reason is None:
        return f"attempt {number} is being started, and has not reported yet", []
    return f"attempt {number} does not start: {_means(job.reason)}", _todo(facts, job.reason)


def _running(facts: Facts) -> tuple[str, list[str]]:
    job, number = facts.job, _number(facts.job)
    if (ending := _ending(job)) is not None:
        return ending, []
    if job.reason is not None:
        return f"attempt {number} runs, but not all of it: {_means(job.reason)}", _todo(facts, job.reason)
    silent = _silence(facts)
    if silent is not None and silent > _SILENCE:
        todo = [f"`rlhf logs {job.id}` says whether it works; it goes on by itself, and reports when it can."]
        return f"attempt {number} runs, but has not reported for {span(silent)}", todo
    doing = f", {facts.activity}" if facts.activity else ""
    return f"all is well: attempt {number} runs{doing}{_at_step(facts)}", []


def _finishing(facts: Facts) -> tuple[str, list[str]]:
    job, number = facts.job, _number(facts.job)
    if job.attempt is not None and job.attempt.confirmed_dead:
        return f"attempt {number} was confirmed dead; its outcome is being stored", []
    if job.reason is Reason.NODE_LOST:
        return f"nobody knows whether attempt {number} still runs: {_means(job.reason)}", _todo(facts, job.reason)
    if job.reason is not None:
        return f"attempt {number} is being ended: {_means(job.reason)}", _todo(facts, job.reason)
    return f"attempt {number} is over or being ended; its logs and outcome are being stored", []


_WISHED = {Desired.PAUSE: "paused", Desired.CANCEL: "cancelled"}


def _ending(job: Job) -> str | None:
    """That the current attempt is asked to end, and why; None: it is not."""
    attempt = job.attempt
    if attempt is None or (job.desired is Desired.RUN and attempt.stopping_since is None):
        return None
    if attempt.stop_reason is None and attempt.accepted_at is None and job.desired is not Desired.RUN:
        return (
            f"attempt {attempt.number} is ended before it began, and the job {_WISHED[job.desired]}, as its owner asked"
        )
    if attempt.stop_reason is not None:
        return f"attempt {attempt.number} is being ended: {_means(attempt.stop_reason)}"
    if job.desired is Desired.PAUSE:
        return f"attempt {attempt.number} saves, and is then paused, as its owner asked"
    if job.desired is Desired.CANCEL:
        return f"attempt {attempt.number} is being cancelled, as its owner asked"
    return f"attempt {attempt.number} was asked to end, and starts again: its owner took the wish back"


def _because(facts: Facts) -> Iterator[str]:
    job = facts.job
    told: list[str] = []

    def quote(text: str) -> str:
        told.append(text)
        return quoted(text)

    if job.message and job.reason not in (Reason.PAUSED_BY_USER, Reason.CANCELLED_BY_USER, Reason.AWAITING_STEP):
        clusters = facts.kubernetes and job.reason in _CLUSTERS and job.phase is not Phase.QUEUED
        whose = ", in the cluster's own words" if clusters else ""
        yield f"{job.reason or 'It is said'}{whose}: {quote(job.message)}"
    if job.attempt is not None and job.phase in ACTIVE:
        if job.attempt.message and job.attempt.message not in told:
            yield f"{job.attempt.stop_reason}: {quote(job.attempt.message)}"
        yield from _current(facts, job.attempt)
        if job.phase is Phase.FINISHING and job.desired is not Desired.RUN:
            yield f"Its owner wants it {_WISHED[job.desired]}"
    if job.phase not in (Phase.SUCCEEDED, Phase.CANCELLED):
        if job.phase is Phase.STARTING and job.reason in _CLUSTERS and (asked := _asked(facts)):
            yield asked
        for need in job.needs:
            why = f": {need.reason}" if need.reason is not None and need.phase is Phase.FAILED else ""
            yield f"It takes {need.step}.{need.output} for {need.path}; {need.job} {stands(need.phase)}{why}"
        for tried in facts.tried[-_ATTEMPTS:]:
            # A job's message often ends with that of its last attempt.
            new = tried.message and not any(tried.message in text for text in told)
            words = f": {quote(tried.message)}" if new else ""
            yield f"Attempt {tried.number} ended {_ago(facts, tried.ended_at)}, {_ended(tried)}{words}"
        for event in facts.events[-_EVENTS:]:
            # What the operator says of an attempt's end, or of a wait, is said above.
            if event.type in _SAID or any(event.message in text or text in event.message for text in told):
                continue
            if event.message:
                yield f"{event.type}, {_ago(facts, event.at)}: {quote(event.message)}"
        if job.newest_checkpoint is not None:
            yield f"Its newest checkpoint is that of step {job.newest_checkpoint}"


def _current(facts: Facts, attempt: Attempt) -> Iterator[str]:
    """How the attempt stands that there is, and what time is left to it."""
    job, now, limits = facts.job, facts.now, facts.job.spec.limits
    if attempt.reported_at is not None:
        busy = f" (then {facts.activity})" if facts.activity and job.phase is Phase.FINISHING else ""
        yield f"It last reported {_ago(facts, attempt.reported_at)}{busy}"
    if job.phase is Phase.STARTING and attempt.stopping_since is None:
        if job.reason is Reason.AWAITING_ADMISSION:
            yield f"limits.start ({span(limits.start)}) is counted from its admission"
        else:
            # Counted from the admission, or from the control plane's own start, where that is later.
            left = limits.start - (now - attempt.created_at).total_seconds()
            yield _left("limits.start", limits.start, left, "to its first report")
    if job.phase is not Phase.RUNNING:
        return
    if attempt.stopping_since is not None:
        grace = job.spec.checkpoint.grace
        yield _left("checkpoint.grace", grace, grace - (now - attempt.stopping_since).total_seconds(), "to save in")
        return
    began = attempt.accepted_at or attempt.created_at
    progressed = attempt.progressed_at or began
    # Who is not heard may have made steps since: that it stands still is what it says itself.
    still = ((attempt.reported_at or began) - progressed).total_seconds()
    if still > min(_SILENCE, limits.stall / 2):
        yield f"It told of its last step, load or save {_ago(facts, progressed)}"
        yield _left("limits.stall", limits.stall, limits.stall - still, "to the next one")
    if limits.wall_clock is not None:
        left = limits.wall_clock - job.ran_for - running_time(attempt, now)
        yield _left("limits.wall_clock", limits.wall_clock, left, "of running")


def _left(limit: str, seconds: float, left: float, until: str) -> str:
    if left <= 0:
        return f"{limit} ({span(seconds)}) is over"
    return f"{limit} ({span(seconds)}) leaves it at least {span(left)} {until}"


def _asked(facts: Facts) -> str:
    """What each pod asks for, as far as the spec says."""
    wanted = facts.job.spec.resources
    parts = [
        f"{wanted.per_node} {wanted.accelerator}" if wanted.accelerator != "none" else "",
        f"{wanted.cpu} cores" if wanted.cpu is not None else "",
        f"{wanted.memory} of memory" if wanted.memory is not None else "",
    ]
    said = [part for part in parts if part]
    if not facts.kubernetes or not said:
        return ""
    each = "Its pod asks" if wanted.nodes == 1 else f"Each of its {wanted.nodes} pods asks"
    return f"{each} for {listed(said)}"


def _todo(facts: Facts, reason: Reason | None) -> list[str]:
    """The advice on a reason, with the words that go with it."""
    job = facts.job
    if reason is None:
        return [f"`rlhf events {job.id}` says what happened."]
    last = facts.tried[-1] if facts.tried and job.phase not in ACTIVE else None
    words = job.message if job.message else (last.message if last is not None else "")
    code = last.exit_code if last is not None else None
    return ADVICE[reason].todo(Case(job, words, code, facts.kubernetes, facts.pipeline))


def _means(reason: Reason | None, otherwise: str = "as it was asked to") -> str:
    return ADVICE[reason].means if reason is not None else otherwise


def _ended(tried: Tried) -> str:
    why = tried.reason.value if tried.reason is not None else "as it was asked to"
    return f"{why}, exit code {tried.exit_code}" if tried.exit_code is not None else why


def _number(job: Job) -> int:
    return job.attempt.number if job.attempt is not None else 0


def _silence(facts: Facts) -> float | None:
    """Seconds since the last report; None: there was none."""
    heard = facts.job.attempt.reported_at if facts.job.attempt is not None else None
    return (facts.now - heard).total_seconds() if heard is not None else None


def _at_step(facts: Facts) -> str:
    if facts.step is None:
        return ""
    return f", at step {facts.step} of {facts.steps}" if facts.steps else f", at step {facts.step}"


def _ago(facts: Facts, at: datetime) -> str:
    return f"{span((facts.now - at).total_seconds())} ago"


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"
