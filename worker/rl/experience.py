"""What an iteration has seen: the answers of all ranks, what the models say of them, and in which batches it is learnt.

All ranks hold all of it: token ids and a few numbers a token are little beside the weights. So an update's rows, the
advantages and their whitening are the same whatever number of ranks has sampled the answers, and each rank takes its
share of every minibatch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Rolled:
    """One answer as it was sampled."""

    index: int  # of its prompt in the iteration, over all ranks
    row: int  # of its prompt in the data
    prompt: list[int]
    answer: list[int]  # with the token that ended it
    ended: bool  # by itself, and not at the limit

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Judged:
    """What the models say of one answer: [answer tokens], and what it is worth."""

    logprobs: Floats  # of the actor that sampled it, nats
    reference: Floats  # of the reference, nats
    values: Floats  # of the critic, before each token
    terms: dict[str, float]  # of the reward, before weights
    reward: float = 0.0  # their weighted sum
    score: float = 0.0  # the same, scaled and clipped: what is learnt from


def minibatches(count: int, *, parts: int, seed: int, step: int, epoch: int) -> list[list[int]]:
    """One epoch over `count` answers in `parts` updates of equal size: a pure function of seed, step and epoch."""
    order = np.random.default_rng([seed, step, epoch, 0x3B5]).permutation(count).tolist()
    size = count // parts
    return [order[start : start + size] for start in range(0, size * parts, size)]


def shares(rows: Sequence[int], lengths: Sequence[int], *, rank: int, world: int, micro_batch: int) -> list[list[int]]:
    """A rank's micro-batches of an update, as many on each rank. `lengths` is of all answers, prompts included.

    The longest rows first, and rows of like length together: little padding, no rank waits for another, and memory that
    does not suffice shows at once.
    """
    longest_first = sorted(rows, key=lambda row: (-lengths[row], row))
    step = micro_batch * world
    return [longest_first[start : start + step][rank::world] for start in range(0, len(longest_first), step)]


def padded(rows: Sequence[Sequence[float] | Floats], shape: tuple[int, int], starts: Sequence[int]) -> Tensor:
    """Numbers of answer tokens where they belong in a batch, [rows, time]; 0 elsewhere. `starts`: of each row."""
    made = np.zeros(shape, dtype=np.float32)
    for number, (values, start) in enumerate(zip(rows, starts, strict=True)):
        made[number, start : start + len(values)] = values
    return torch.from_numpy(made)


def taken(batch: Tensor, starts: Sequence[int], counts: Sequence[int]) -> list[Floats]:
    """The other way round: of [rows, time] each row's `count` numbers from its start on."""
    host = batch.float().cpu().numpy()
    return [
        host[number, start : start + count].copy()
        for number, (start, count) in enumerate(zip(starts, counts, strict=True))
    ]


def by_term(judged: Sequence[Judged]) -> dict[str, list[float]]:
    """The terms of answers, by their names."""
    return {title: [one.terms[title] for one in judged] for title in (judged[0].terms if judged else ())}
