"""The iteration in hand: how far it is, and all that is not to be done again when an attempt goes on with it."""

from dataclasses import astuple, dataclass, field
from typing import Any

import torch

from worker.rl.experience import Judged, Rolled


@dataclass
class Hand:
    """An iteration from its first prompt to its last update. Each rank has its own."""

    step: int
    rolled: list[Rolled] = field(default_factory=list)
    """This rank's answers, of the chunks that are finished."""
    everyone: list[Rolled] = field(default_factory=list)
    """The answers of all ranks by their index, once all are sampled."""
    judged: list[Judged] = field(default_factory=list)
    """What the models say of `everyone`, once all are judged."""
    updates: int = 0
    """Updates that are done."""
    tally: list[dict[str, float]] = field(default_factory=list)
    """What each of them measured."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, over all attempts."""

    @property
    def part(self) -> int:
        """How far it is, as a number that grows; 0: nothing is done."""
        return len(self.rolled) + (1 + self.updates if self.judged else 0)

    def own(self) -> dict[str, Any]:
        """What only this rank knows, as plain values."""
        return {"rolled": [] if self.judged else [astuple(answer) for answer in self.rolled]}

    def common(self) -> dict[str, Any]:
        """What all ranks know, as plain values and tensors."""
        return {
            "step": self.step,
            "everyone": [astuple(answer) for answer in self.everyone] if self.judged else [],
            "judged": [_plain(judged) for judged in self.judged],
            "updates": self.updates,
            "tally": self.tally,
            "seconds": self.seconds,
        }

    @classmethod
    def of(cls, own: dict[str, Any], common: dict[str, Any], rank: int, world: int) -> "Hand":
        """Puts back what `own` and `common` gave."""
        everyone = [Rolled(*values) for values in common["everyone"]]
        rolled = [Rolled(*values) for values in own["rolled"]]
        return cls(
            step=common["step"],
            rolled=rolled or [answer for answer in everyone if answer.index % world == rank],
            everyone=everyone,
            judged=[_judged(values) for values in common["judged"]],
            updates=common["updates"],
            tally=common["tally"],
            seconds=common["seconds"],
        )


def _plain(judged: Judged) -> dict[str, Any]:
    arrays = {name: torch.from_numpy(getattr(judged, name)) for name in ("logprobs", "reference", "values")}
    return {**arrays, "terms": judged.terms, "reward": judged.reward, "score": judged.score}


def _judged(values: dict[str, Any]) -> Judged:
    arrays = {name: values[name].numpy() for name in ("logprobs", "reference", "values")}
    return Judged(**arrays, terms=values["terms"], reward=values["reward"], score=values["score"])
