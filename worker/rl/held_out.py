"""How the actor answers prompts that it does not learn from."""

from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

from worker.contract.ppo import RlStage
from worker.contract.spec import JobSpec
from worker.distributed import Ranks
from worker.rl.experience import Rolled, by_term, shares
from worker.rl.guards import HeldOut as Measured
from worker.rl.judge import Judge
from worker.rl.prompts import PromptRow
from worker.rl.rewards import weighted, win_rate
from worker.rl.sampled import Sampled

# Iterations count from 1. Always the same seeds: what differs between two evaluations is the actor.
_STEP = 0


class Opening:
    """What the actor's answers to held-out prompts were worth before it had learnt anything; kept in checkpoints."""

    def __init__(self) -> None:
        self.rewards: list[float] | None = None

    def state(self) -> dict[str, Any]:
        """All that goes into a checkpoint."""
        return {"rewards": self.rewards}

    def load(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        self.rewards = state["rewards"]


class HeldOut:
    """The held-out prompts, and their evaluation. It leaves no trace in training."""

    def __init__(
        self,
        spec: JobSpec,
        prompts: Sequence[PromptRow],
        sampled: Sampled,
        judge: Judge,
        ranks: Ranks,
        opening: Opening,
    ):
        self._spec, self._prompts, self._sampled, self._judge = spec, prompts, sampled, judge
        self._opening = opening
        assert isinstance(spec.stage, RlStage)
        self._reward, self._ranks = spec.stage.reward, ranks

    def evaluate(self, step: int) -> tuple[dict[str, float], Measured]:
        """`eval/reward` and each of its terms, `eval/win_rate` against the actor as it began (by the same seeds),
        `eval/kl` and `eval/length`, over all ranks, and what guards look at; all ranks call it."""
        count, world = len(self._prompts), self._ranks.world
        # As many on each rank: the first prompts once more, where they do not divide.
        indices = [index % count for index in range(-(-count // world) * world)]
        mine = indices[self._ranks.rank :: world]
        rolled: list[Rolled] = []
        self._sampled.answer(self._prompts, [(index, index) for index in mine], step=_STEP, into=rolled)
        groups = shares(
            range(len(rolled)), [len(one) for one in rolled], rank=0, world=1, micro_batch=self._spec.micro_batch
        )
        judged = self._judge.of(rolled, self._prompts, groups, critic=False)
        found = {
            index: (one, answer)
            for index, one, answer in self._ranks.gather(
                [(rolled[place].index, one, rolled[place]) for place, one in judged]
            )
        }
        ordered = [found[index] for index in range(count)]
        terms = by_term([one for one, _ in ordered])
        rewards = weighted(self._reward, terms, [answer.ended for _, answer in ordered])
        if step == 0:
            self._opening.rewards = rewards
        before = self._opening.rewards
        metrics = {
            "eval/reward": fmean(rewards),
            **{f"eval/reward/{title}": fmean(values) for title, values in terms.items()},
            **({"eval/win_rate": win_rate(rewards, before)} if before is not None else {}),
            "eval/kl": fmean(float((one.logprobs - one.reference).sum()) for one, _ in ordered),
            "eval/length": fmean(len(answer.answer) for _, answer in ordered),
        }
        return metrics, Measured(metrics["eval/reward"], pstdev(rewards))
