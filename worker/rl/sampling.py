"""Drawing the next token of several rows at once, each by random numbers of its own."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.contract.ppo import Rollout
from worker.errors import Diverged


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 1.0
    top_p: float = 1.0
    greedy: bool = False
    """The likeliest token instead of a draw; temperature and top_p say nothing then."""

    @classmethod
    def of(cls, rollout: Rollout, *, greedy: bool = False) -> "Sampling":
        """That of a rollout."""
        return cls(rollout.temperature, rollout.top_p, greedy)


def uniforms(seed: int, count: int) -> Tensor:
    """The random numbers of one answer's tokens: [count] in float64, 0 <= u < 1, the same on any machine and device."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def next_tokens(logits: Tensor, uniform: Tensor, sampling: Sampling, barred: Tensor | None = None) -> Tensor:
    """A token a row, [rows], for logits [rows, vocabulary] and a random number a row, [rows] in float64.

    A token is drawn by inverting the cumulative distribution, so a row's draw depends on its logits and its number
    alone. `barred`, [rows, vocabulary], marks tokens that are not to be drawn. Raises Diverged where logits are no
    numbers.
    """
    logits = logits.float()
    if barred is not None:
        logits = logits.masked_fill(barred, -math.inf)
    if sampling.greedy:
        best, tokens = logits.max(dim=-1)
        _check(best)
        return tokens
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    order = None
    if sampling.top_p < 1.0:
        # The nucleus (Holtzman et al., 2020): the fewest tokens, likeliest first, that together have top_p.
        probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = probabilities.cumsum(dim=-1, dtype=torch.float64) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    # In float64: over a vocabulary of 10^5 the rounding of fp32 would favour some tokens.
    cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)  # [rows, vocabulary]
    total = cumulative[:, -1:]
    _check(total)
    # The first token whose cumulative probability is above u x total: never one whose own probability is 0.
    tokens = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
    return (tokens if order is None else order.gather(-1, tokens))[:, 0]


def _check(numbers: Tensor) -> None:
    if not bool(torch.isfinite(numbers).all()):
        raise Diverged("the model's logits are no numbers any more; lower the learning rate, or clip more")
