"""Pipelines: which step may start, which never can, and what is to be said of all of them together."""

from collections.abc import Iterable
from dataclasses import dataclass

from api.domain.job import ACTIVE, FINAL, Fault, Need, Phase


@dataclass(frozen=True, slots=True)
class Broken:
    """Why a step can never start, and whose failure that is."""

    message: str
    fault: Fault


def broken(needs: Iterable[Need]) -> Broken | None:
    """Why what a step needs will not come; None while it may."""
    for need in needs:
        if need.retried:
            continue
        if need.phase is Phase.FAILED:
            why = f": {need.reason}" if need.reason is not None else ""
            return Broken(f"the step `{need.step}` failed{why}", need.fault or Fault.USER)
        if need.phase is Phase.CANCELLED:
            return Broken(f"the step `{need.step}` was cancelled", Fault.USER)
    return None


def ready(needs: Iterable[Need]) -> bool:
    """Whether all that a step needs is there."""
    return all(need.phase is Phase.SUCCEEDED for need in needs)


def waits_for(steps: Iterable[str]) -> str:
    """Why a step waits, in a sentence that stays true until it ends."""
    named = sorted(set(steps))
    return f"waits for the step{'s' if len(named) > 1 else ''} {', '.join(named)}"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one step is, as far as a pipeline's phase follows from it."""

    phase: Phase
    retried: bool = False
    """It failed, and will be queued again."""
    waiting: bool = False
    """For outputs of other steps."""
    started: bool = False


def phase_of(steps: Iterable[Standing]) -> Phase:
    """A pipeline's phase: final when all of its steps are."""
    steps = list(steps)
    left = [step for step in steps if step.phase not in FINAL or step.retried]
    if not left:
        return next(
            (phase for phase in (Phase.FAILED, Phase.CANCELLED) if any(step.phase is phase for step in steps)),
            Phase.SUCCEEDED,
        )
    if any(step.phase in ACTIVE for step in left):
        return Phase.RUNNING
    going = [step for step in left if step.phase is not Phase.PAUSED and not step.waiting]
    if not going and any(step.phase is Phase.PAUSED for step in left):
        return Phase.PAUSED
    return Phase.RUNNING if any(step.started for step in steps) else Phase.QUEUED


def hopeless(needs: dict[str, set[str]], cancelled: set[str]) -> set[str]:
    """The steps that can never start, since a step before them was cancelled, for ever. `needs`: by step, directly."""
    found: set[str] = set()
    while more := {step for step, before in needs.items() if step not in found and before & (cancelled | found)}:
        found |= more
    return found
