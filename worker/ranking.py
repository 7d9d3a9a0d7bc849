"""How well scores rank answers: the loss that a reward model learns by, and what is measured of it.

The odds that answer a is better than b are exp(score a - score b) (Bradley and Terry, 1952). The loss of a pair is the
negative log-likelihood of what people said, in nats: -log sigmoid(s_better - s_worse - margin). All pairs of a row are
averaged, since they share their answers: as rows of their own they would be learnt by heart (Ouyang et al., 2022).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from worker.distributed import Ranks
from worker.engine import Compute, Engine
from worker.pairs import PairBatch
from worker.scores import scores
from worker.state import undisturbed

BINS = 10
"""Bins of equal width, from odds of .5 to 1, over which calibration is measured."""


def pair_sums(found: Tensor, batch: PairBatch, center: float) -> Tensor:
    """[loss, correct, pairs] of a micro-batch's scores, [answers], which are fp32.

    The loss is a sum over rows, in nats; with `center` each pair's summed scores, squared, are added with that weight.
    Of two answers with the same score, half counts as correct.
    """
    better, worse = found[batch.better], found[batch.worse]
    gap = better - worse  # [pairs]
    nats = nn.functional.softplus(batch.margins - gap) + center * (better + worse).square()
    correct = (gap > 0).float() + 0.5 * (gap == 0).float()
    return torch.stack([(nats * batch.weights).sum(), correct.sum(), correct.new_tensor(float(len(gap)))])


def ranking(center: float) -> Compute:
    """What an engine computes to learn from comparisons: `pair_sums` of the model's scores."""

    def sums(model: nn.Module, batch: PairBatch) -> Tensor:
        return pair_sums(scores(model, batch), batch, center)

    return sums


@dataclass(frozen=True)
class Tally:
    """Sums over comparisons, which add up over batches and ranks."""

    sums: NDArray[np.float64]

    @classmethod
    def empty(cls) -> "Tally":
        """Of nothing."""
        return cls(np.zeros(9 + 3 * BINS))

    @classmethod
    def of(cls, found: Tensor, batch: PairBatch, center: float = 0.0) -> "Tally":
        """Of one micro-batch and its scores, [answers]."""
        found, batch = found.detach().double().cpu(), batch.to("cpu")
        nats, correct, pairs = pair_sums(found, batch, center).tolist()
        every, best = found[: batch.answers].numpy(), found[batch.best].numpy()
        gap = (found[batch.better] - found[batch.worse]).numpy()
        odds = 1 / (1 + np.exp(-np.abs(gap)))  # of the answer with the higher score
        right = np.where(gap == 0, 0.5, gap > 0)
        bins = np.clip(((odds - 0.5) * 2 * BINS).astype(int), 0, BINS - 1)
        spread = [np.bincount(bins, weights=w, minlength=BINS) for w in (np.ones_like(odds), odds, right)]
        plain = [nats, batch.trained, correct, pairs, best.sum(), len(best), every.sum(), (every**2).sum(), len(every)]
        return cls(np.concatenate([np.array(plain, dtype=np.float64), *spread]))

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.sums + other.sums)

    def metrics(self) -> dict[str, float]:
        """`eval/*`: the loss of a row, the accuracy and calibration of pairs, and the scores' mean and spread."""
        nats, rows, correct, pairs, best, bests, total, squares, answers = self.sums[:9].tolist()
        mean = total / max(1.0, answers)
        return {
            "eval/loss": nats / max(1.0, rows),
            "eval/accuracy": correct / max(1.0, pairs),
            "eval/calibration": self.calibration_error,
            "eval/score_mean": best / max(1.0, bests),
            "eval/score_std": float(np.sqrt(max(0.0, squares / max(1.0, answers) - mean**2))),
        }

    @property
    def accuracy(self) -> float:
        """Share of pairs whose better answer has the higher score; a tie counts half."""
        return float(self.sums[2] / max(1.0, self.sums[3]))

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: how far the odds in a bin are from how often they are right, over all pairs."""
        _, odds, right = self.sums[9:].reshape(3, BINS)
        return float(np.abs(odds - right).sum() / max(1.0, self.sums[3]))


def evaluate_ranking(
    engine: Engine, batches: list[PairBatch], ranks: Ranks, between: Callable[[], None], center: float = 0.0
) -> dict[str, float]:
    """`Tally.metrics` of all ranks' batches.

    `between` is called before every micro-batch, the same number of times on each rank; what it raises passes through.
    """
    tally = Tally.empty()
    with undisturbed():
        for batch in batches:
            between()
            tally += Tally.of(engine.eval_micro(batch, scores), batch, center)
    return Tally(np.array(ranks.sum(tally.sums.tolist()))).metrics()
