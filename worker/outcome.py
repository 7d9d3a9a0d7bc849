"""What the ends of its ranks make of an attempt: one exit code, one reason, one sentence. Pure."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from worker.contract.protocol import Exit, Finish, Output, Termination
from worker.errors import PausedByGuard


@dataclass(frozen=True)
class Failure:
    """What a rank said of its own end, at `at` (seconds since 1970)."""

    at: float
    exit: int
    reason: str
    message: str


@dataclass(frozen=True)
class RankEnd:
    """How one rank's process ended."""

    rank: int
    code: int
    """Its exit code; minus the signal's number, if one ended it."""
    at: float
    """When that was seen, in seconds since 1970."""
    failure: Failure | None = None
    finished: bool = False
    """It said that its stage is done."""
    killed_by_launcher: bool = False
    gone: str = ""
    """What became of its whole node, in a sentence: nobody saw how the rank itself ended."""

    @property
    def well(self) -> bool:
        """Done, or stopped when asked: nothing that the other ranks must end for."""
        return (self.code == 0 and self.finished) or self.code == Exit.STOPPED


@dataclass(frozen=True)
class Outcome:
    """The attempt's end: the launcher's exit code and its last word."""

    exit: int
    finish: Finish

    def termination(self, step: int, undelivered: int = 0) -> Termination:
        """What is left in the termination file: the last step heard of, and how many reports could not be sent."""
        said = self.finish.model_dump()
        return Termination(**said, exit_code=self.exit, step=step, undelivered=undelivered)


@dataclass(frozen=True)
class _Cause:
    at: float
    exit: int
    reason: str
    message: str
    precedence: int
    """Of two causes the lower comes first, whenever it was seen."""


def failed(exit_code: int, reason: str, message: str) -> Outcome:
    """The outcome of an attempt that somebody other than its ranks has ended."""
    return Outcome(exit_code, Finish(outcome="failed", reason=reason, message=message[:8192]))


def stopped(message: str) -> Outcome:
    """The outcome of one that was asked to stop."""
    return Outcome(Exit.STOPPED, Finish(outcome="stopped", reason="Stopped", message=message))


def judge(ends: Sequence[RankEnd], outputs: Sequence[Output], stopping: str | None) -> Outcome:
    """The outcome of an attempt whose ranks have all ended. `stopping`: they had been asked to stop, and how that went.

    What follows from another rank's end is not the cause: a rank that fails with a name of its own, or that somebody
    kills, comes before one that only finds its sibling gone.
    """
    if ends and all(end.code == 0 and end.finished for end in ends):
        return Outcome(Exit.DONE, Finish(outcome="succeeded", reason="Finished", outputs=list(outputs)))
    causes = [cause for end in ends if (cause := _cause(end)) is not None]
    if causes:
        first = min(causes, key=lambda cause: (cause.precedence, cause.at))
        return Outcome(first.exit, Finish(outcome="failed", reason=first.reason, message=first.message[:8192]))
    guard = next((end.failure for end in ends if end.failure and end.failure.reason == PausedByGuard.reason), None)
    if guard is not None:
        return Outcome(Exit.STOPPED, Finish(outcome="stopped", reason=guard.reason, message=guard.message[:8192]))
    if stopping is not None:
        message = next((end.failure.message for end in ends if end.failure is not None), stopping)
        return stopped(message)
    message = "the ranks ended without saying how"
    return Outcome(Exit.FAILED, Finish(outcome="failed", reason="WorkerError", message=message))


def _cause(end: RankEnd) -> _Cause | None:
    """What speaks for this rank being the cause; None: nothing."""
    if end.failure is not None and end.failure.exit == Exit.STOPPED:
        return None
    if end.failure is not None:
        named = end.failure.reason != "WorkerError"
        message = f"rank {end.rank}: {end.failure.message}"
        return _Cause(end.failure.at, end.failure.exit, end.failure.reason, message, 0 if named else 2)
    if end.killed_by_launcher or (end.code == 0 and end.finished):
        return None
    if end.gone:
        return _Cause(end.at, Exit.KILLED, "Killed", end.gone, 1)
    if end.code < 0:
        return _killed(end)
    if end.code == 0:
        return _Cause(end.at, Exit.FAILED, "WorkerError", f"rank {end.rank} ended before its stage was done", 3)
    message = f"rank {end.rank} ended with code {end.code} and without a word; its log may say more"
    return _Cause(end.at, Exit.FAILED, "WorkerError", message, 2)


def _killed(end: RankEnd) -> _Cause:
    number = -end.code
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    message = f"rank {end.rank} was killed by {name}"
    if number == signal.SIGKILL:
        message += "; if nobody did that, the machine ran out of memory"
    # A library may abort its process because a sibling is gone; nothing but an outsider sends SIGKILL.
    return _Cause(end.at, Exit.KILLED, "Killed", message, 1 if number == signal.SIGKILL else 2)
