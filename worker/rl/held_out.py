"""How the actor answers prompts that it does not learn from."""

from collections.abc import Sequence
from statistics import fmean, pstdev

from worker.contract.ppo import PpoStage
from worker.contract.spec import JobSpec
from worker.distributed import Ranks
from worker.rl.experience import Rolled, by_term, shares
from worker.rl.guards import HeldOut as Measured
from worker.rl.judge import Judge
from worker.rl.prompts import PromptRow
from worker.rl.rewards import weighted
from worker.rl.sampled import Sampled

# Iterations count from 1. Always the same seeds: what differs between two evaluations is the actor.
_STEP = 0


class HeldOut:
    """The held-out prompts, and their evaluation. It leaves no trace in training."""

    def __init__(self, spec: JobSpec, prompts: Sequence[PromptRow], sampled: Sampled, judge: Judge, ranks: Ranks):
        self._spec, self._prompts, self._sampled, self._judge = spec, prompts, sampled, judge
        assert isinstance(spec.stage, PpoStage)
        self._reward, self._ranks = spec.stage.reward, ranks

    def evaluate(self) -> tuple[dict[str, float], Measured]:
        """`eval/reward`, `eval/kl` and `eval/length`, over all ranks, and what guards look at; all ranks call it."""
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
        rewards = weighted(self._reward, by_term([one for one, _ in ordered]), [answer.ended for _, answer in ordered])
        metrics = {
            "eval/reward": fmean(rewards),
            "eval/kl": fmean(float((one.logprobs - one.reference).sum()) for one, _ in ordered),
            "eval/length": fmean(len(answer.answer) for _, answer in ordered),
        }
        return metrics, Measured(metrics["eval/reward"], pstdev(rewards))
