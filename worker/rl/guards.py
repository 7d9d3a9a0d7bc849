"""What a run that goes wrong looks like: thresholds from the spec, and what was seen of an iteration.

Nothing here acts. `Watch.look` says what has tripped, and whoever called warns, pauses or stops. A guard that warns or
pauses speaks when it trips, and again only after it was well in between: so a run that a person lets go on after a
pause is not paused again by the same thing. One that stops, stops. A number that is NaN trips its guard.

**Reward hacking** has two signs, and both need a reward that rises: its mean over the last `window` iterations lies
above that of the `window` before.

    held-out   Its mean in the last `window` iterations lies below that of the `window` before by more than `drop`
               standard deviations of single answers. Where it was not measured in those before, the newest older
               measure counts, with the reward as it was then.
    budget     The KL, mean of the last `window` iterations, is above `budget`: what rises is what the KL bought
               (Gao, Schulman and Hilton, 2023).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from statistics import fmean
from typing import Any, Literal

from worker.contract.guards import Guard, Guards, HackingGuard, LengthGuard, Then

Precision = Literal["fp32", "bf16"]
_RATIO: dict[Precision, float] = {"fp32": 1e-4, "bf16": 1e-2}
_NAMED = 5  # parameters, of which a message gives the names


@dataclass(frozen=True)
class HeldOut:
    """The reward of answers to held-out prompts."""

    mean: float
    std: float  # of single answers


@dataclass(frozen=True)
class Observed:
    """What was seen, over all ranks; None where nothing was looked at.

    An iteration may be told in several parts, but for reward and KL, which belong together.
    """

    kl: float | None = None  # nats an answer, mean
    reward: float | None = None  # weighted sum, mean
    length: float | None = None  # tokens an answer, mean
    cut: float | None = None  # share of answers that hit the limit
    ratio_error: float | None = None  # largest |ratio - 1| in the iteration's first update
    entropy: float | None = None  # nats a token, mean
    without_gradient: Sequence[str] | None = None  # trained parameters that got none in an update
    held_out: HeldOut | None = None


@dataclass(frozen=True)
class Tripped:
    """A guard that has tripped: its name in the spec, a sentence, and what the spec says to do."""

    name: str
    message: str
    then: Then

    @property
    def event(self) -> str:
        """The type of the event that tells it, such as `KlGuard`."""
        return f"{self.name.capitalize()}Guard"


class Watch:
    """Looks at iterations, one after another."""

    def __init__(self, guards: Guards, precision: Precision):
        """`precision` is the actor's: what its ratio is measured in."""
        self._guards = guards
        self._ratio = _RATIO[precision]
        self._tripped: set[str] = set()
        self._hacking = _Hacking(guards.hacking) if guards.hacking is not None else None

    def look(self, step: int, seen: Observed) -> list[Tripped]:
        """What has tripped in iteration `step`, by what was `seen` of it now."""
        found = []
        for name, guard, wrong in self._all(step, seen):
            if wrong is None:
                self._tripped.discard(name)
                continue
            if guard.then == "stop" or name not in self._tripped:
                found.append(Tripped(name, wrong, guard.then))
            self._tripped.add(name)
        return found

    def _all(self, step: int, seen: Observed) -> Iterator[tuple[str, Guard, str | None]]:
        """(name, guard, what is wrong) of each guard that has something to look at."""
        guards = self._guards
        if guards.kl is not None and seen.kl is not None:
            yield "kl", guards.kl, _kl(seen.kl, guards.kl.max)
        if guards.length is not None and (seen.length is not None or seen.cut is not None):
            yield "length", guards.length, _length(seen, guards.length)
        if guards.ratio is not None and seen.ratio_error is not None:
            most = self._ratio if guards.ratio.max is None else guards.ratio.max
            yield "ratio", guards.ratio, _ratio(seen.ratio_error, most)
        if guards.entropy is not None and seen.entropy is not None:
            yield "entropy", guards.entropy, _entropy(seen.entropy, guards.entropy.min)
        if guards.gradient is not None and seen.without_gradient is not None:
            yield "gradient", guards.gradient, _gradient(seen.without_gradient)
        if self._hacking is not None and guards.hacking is not None and (seen.reward is not None or seen.held_out):
            yield "hacking", guards.hacking, self._hacking.look(step, seen)

    def state(self) -> dict[str, Any]:
        """All that goes into a checkpoint, as JSON."""
        return {"tripped": sorted(self._tripped), "hacking": self._hacking.state() if self._hacking else None}

    def load(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave, under the same spec."""
        self._tripped = set(state["tripped"])
        if self._hacking is not None and state["hacking"] is not None:
            self._hacking.load(state["hacking"])


def _kl(kl: float, most: float) -> str | None:
    if kl <= most:
        return None
    return (
        f"the actor is {kl:.4g} nats an answer from its reference, more than {most:g} (guards.kl.max); raise "
        "ppo.kl.coef, or lower the actor's learning rate"
    )


def _length(seen: Observed, guard: LengthGuard) -> str | None:
    if seen.length is not None and not seen.length >= guard.min:
        return (
            f"answers have {seen.length:.3g} tokens on average, fewer than {guard.min:g} (guards.length.min); see in "
            "the samples what earns the reward, or set rollout.min_new_tokens"
        )
    if seen.cut is not None and not seen.cut < guard.cut:
        return (
            f"{seen.cut:.1%} of the answers were cut off at rollout.max_new_tokens, at least {guard.cut:.1%} "
            "(guards.length.cut); give them more room, or a negative reward.missing_eos"
        )
    return None


def _ratio(error: float, most: float) -> str | None:
    if error <= most:
        return None
    return (
        f"before anything was learnt the ratio is off 1 by {error:.3g}, more than {most:g} (guards.ratio.max): the "
        "log-probabilities of then and now were not computed in the same way"
    )


def _entropy(entropy: float, least: float) -> str | None:
    if entropy >= least:
        return None
    return (
        f"the actor's entropy is {entropy:.3g} nats a token, less than {least:g} (guards.entropy.min): it finds "
        "nothing new; set ppo.entropy, or lower the learning rate"
    )


def _gradient(names: Sequence[str]) -> str | None:
    if not names:
        return None
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"no gradient reached {', '.join(names[:_NAMED])}{more} in a whole update, though they are trained"


@dataclass(frozen=True)
class _Measure:
    """A held-out reward, and the reward around it."""

    step: int
    mean: float
    std: float
    reward: float  # mean of the `window` iterations up to it


class _Hacking:
    """The history that reward hacking shows in."""

    def __init__(self, guard: HackingGuard):
        self._guard = guard
        self._iterations: list[tuple[float, float | None]] = []  # (reward, KL), the last 2 x window
        self._measures: list[_Measure] = []  # in order
        self._held_out: str | None = None  # what the newest measure said

    def look(self, step: int, seen: Observed) -> str | None:
        """What is wrong, if anything is."""
        window = self._guard.window
        if seen.reward is not None:
            if not self._iterations:  # what was measured before the first iteration counts as measured at it
                self._measures = [replace(measure, reward=seen.reward) for measure in self._measures]
            self._iterations = [*self._iterations, (seen.reward, seen.kl)][-2 * window :]
        if seen.held_out is not None:
            lately = _mean(reward for reward, _ in self._iterations[-window:])
            self._measures.append(_Measure(step, seen.held_out.mean, seen.held_out.std, lately))
            self._held_out = self._falling(step)
        return self._held_out or self._bought()

    def _falling(self, step: int) -> str | None:
        """The held-out reward has fallen while the reward rose."""
        window = self._guard.window
        late = [m for m in self._measures if m.step > step - window]
        older = [m for m in self._measures if m.step <= step - window]
        early = [m for m in older if m.step > step - 2 * window] or older[-1:]
        self._measures = [*early, *late]
        if not early:
            return None
        before, now = _mean(m.reward for m in early), _mean(m.reward for m in late)
        fallen = _mean(m.mean for m in early) - _mean(m.mean for m in late)
        allowed = self._guard.drop * _mean(m.std for m in (*early, *late))
        if not now > before or fallen <= allowed:
            return None
        return (
            f"the reward rose from {before:.4g} to {now:.4g}, and the reward of held-out prompts fell by {fallen:.4g}, "
            f"more than {allowed:.3g} (guards.hacking.drop, {self._guard.drop:g} standard deviations)"
        )

    def _bought(self) -> str | None:
        """The reward rises at a KL beyond the budget."""
        window = self._guard.window
        if len(self._iterations) < 2 * window:
            return None
        before = _mean(reward for reward, _ in self._iterations[:window])
        now = _mean(reward for reward, _ in self._iterations[window:])
        kl = _mean(kl for _, kl in self._iterations[window:] if kl is not None)
        if not now > before or not kl > self._guard.budget:
            return None
        return (
            f"the reward rose from {before:.4g} to {now:.4g} at a KL of {kl:.4g} nats an answer, more than "
            f"{self._guard.budget:g} (guards.hacking.budget): look whether its samples are any better"
        )

    def state(self) -> dict[str, Any]:
        return {
            "iterations": list(self._iterations),
            "measures": [astuple(measure) for measure in self._measures],
            "held_out": self._held_out,
        }

    def load(self, state: dict[str, Any]) -> None:
        self._iterations = [(reward, kl) for reward, kl in state["iterations"]]
        self._measures = [_Measure(*values) for values in state["measures"]]
        self._held_out = state["held_out"]


def _mean(numbers: Iterable[float]) -> float:
    """The mean; NaN of nothing."""
    some = list(numbers)
    return fmean(some) if some else math.nan
