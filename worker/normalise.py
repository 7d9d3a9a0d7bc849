"""Scores of mean 0: a reward model's constant, which pairs cannot teach it, is folded into its head.

A head without a bias has no constant to change. But a direction v with v . h = 1 at the end of every answer acts as
one; it is found by ridge regression over the hidden states h that the head reads. The head w - c v then scores every
answer by c less, and c is chosen so that the mean over the reference answers is 0. Order and differences stay, as far
as v . h is 1: how far it is, is reported.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from worker.heads import head_of
from worker.pairs import PairBatch
from worker.ranking import Tally
from worker.scores import last_hidden

# Ridge, as a share of the mean square of a hidden state's entries: enough to keep noise out of v.
RIDGE = 1e-3


@dataclass(frozen=True)
class Seen:
    """What a head read of a micro-batch, and the scores that it gave."""

    batch: PairBatch
    hidden: NDArray[np.float32]  # [answers, size]
    scores: NDArray[np.float32]  # [answers]


@dataclass(frozen=True)
class Normalised:
    """What was done to a head, and what of it a person should know."""

    mean_before: float
    mean: float
    """Of the scores of the reference answers, as the head is saved."""
    of: str
    answers: int
    """Reference answers."""
    accuracy_before: float
    accuracy: float
    """Share of the same rows' pairs that the head as saved ranks right."""
    largest_deviation: float
    """Of v . h from 1, over all answers, each by a v found without it: by this share of the constant a score is off."""

    def config(self) -> dict[str, Any]:
        """For `reward_normalised` in config.json."""
        return asdict(self)

    def sentence(self) -> str:
        """For an event."""
        return (
            f"The {self.answers} reference answers ({self.of}) had a mean score of {self.mean_before:.4f}; the "
            f"score head is saved so that it is {self.mean:.1g}. It ranks {self.accuracy:.1%} of the pairs right "
            f"({self.accuracy_before:.1%} before). Scores moved alike, within {self.largest_deviation:.1%}."
        )


def read(model: nn.Module, batch: PairBatch) -> Tensor:
    """What the head reads of each answer and what it says to it, in fp32: [answers, size + 1]."""
    hidden = last_hidden(model, batch)
    return torch.cat([hidden.float(), head_of(model)(hidden)], dim=1)


def seen(found: Tensor, batch: PairBatch) -> Seen:
    """What `read` gave, without the row of padding of a batch that has no answers."""
    array = found[: batch.answers].cpu().numpy()
    return Seen(batch.to("cpu"), array[:, :-1], array[:, -1])


def normalised(head: Tensor, every: Sequence[Seen], of: str) -> tuple[Tensor, Normalised]:
    """The head, [1, size], with mean 0 over the best answers of all rows, in its own precision; and what was done.

    `of` says what rows they are. Raises ValueError where no direction acts as a constant.
    """
    hidden = np.concatenate([one.hidden for one in every]).astype(np.float64)  # [answers, size]
    before = np.concatenate([one.scores for one in every]).astype(np.float64)  # [answers]
    best = _joined([one.batch.best.numpy() for one in every], [one.batch.answers for one in every])
    constant, leverage = _constant(hidden)
    reach = hidden @ constant  # [answers]: 1, if all is well
    if not abs(reach[best].mean()) > 0.1:
        raise ValueError("the hidden states at the ends of answers have no direction in common")
    shift = before[best].mean() / reach[best].mean()
    saved = (head.double() - shift * torch.from_numpy(constant).to(head.device)).to(head.dtype)
    after = hidden @ saved.double().cpu().numpy()[0]
    return saved, Normalised(
        mean_before=float(before[best].mean()),
        mean=float(after[best].mean()),
        of=of,
        answers=len(best),
        accuracy_before=_accuracy(every, before),
        accuracy=_accuracy(every, after),
        largest_deviation=float(np.abs((1 - reach) / (1 - leverage)).max()),
    )


def _constant(hidden: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """v of [size] such that hidden @ v is near 1; and each answer's leverage, below 1: its part in its own fit."""
    answers, size = hidden.shape
    ridge = RIDGE * np.square(hidden).mean() * answers
    if answers < size:  # the same solution, by the smaller system
        inverse = np.linalg.inv(hidden @ hidden.T + ridge * np.eye(answers))
        return hidden.T @ inverse.sum(axis=1), 1 - ridge * np.diag(inverse)
    inverse = np.linalg.inv(hidden.T @ hidden + ridge * np.eye(size))
    return inverse @ hidden.sum(axis=0), np.einsum("as,st,at->a", hidden, inverse, hidden, optimize=True)


def _joined(parts: Sequence[NDArray[np.int64]], counts: Sequence[int]) -> NDArray[np.int64]:
    firsts = np.cumsum([0, *counts])
    return np.concatenate([part + first for part, first in zip(parts, firsts, strict=False)])


def _accuracy(every: Sequence[Seen], scores: NDArray[np.float64]) -> float:
    tally, start = Tally.empty(), 0
    for one in every:
        end = start + one.batch.answers
        # A batch without answers has no pairs either.
        tally += Tally.of(torch.from_numpy(scores[start:end].copy()), one.batch)
        start = end
    return tally.accuracy
