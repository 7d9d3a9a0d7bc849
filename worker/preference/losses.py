"""The losses of preference methods, as functions of log-probabilities alone: one number a pair, or a row.

A score s(y) says how much more a model would give an answer y than the reference would: log pi(y|x) - log ref(y|x),
summed over the answer's tokens, or averaged over them; without a reference, log pi(y|x) alone. beta s(y) is the reward
that the model implies. With h = s(better) - s(worse) - margin / beta, where a row may ask for a margin of rewards
(Amini et al., 2024):

    sigmoid   -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)     (Rafailov et al., 2023; e: Mitchell, 2023)
    hinge     max(0, 1 - beta h)                                        (Zhao et al., 2023)
    ipo       (h - 1 / (2 beta))^2                                      (Azar et al., 2023, eq. 17)
    odds      -log sigmoid(log odds(better) - log odds(worse)),  odds(y) = p / (1 - p), p = exp(mean log pi)
                                                                        (Hong et al., 2024, eq. 7)
    kto       weight (1 - sigmoid(beta (s - z))), and with z - s for an answer that is not one to give; z is the
              divergence of the model from the reference                (Ethayarajh et al., 2024, eq. 7 and 8)
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

Pairwise = Literal["sigmoid", "hinge", "ipo"]

_CERTAIN = -1e-7
"""The highest mean log-probability that odds are told of: those of certainty are infinite."""


def pairwise(
    better: Tensor, worse: Tensor, margins: Tensor, *, loss: Pairwise, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """The loss of each pair of scores, [pairs]. `label_smoothing` is how often people are wrong, for `sigmoid`."""
    gap = better - worse - margins / beta
    match loss:
        case "sigmoid":
            wrong = label_smoothing * softplus(beta * gap) if label_smoothing else 0.0
            return (1 - label_smoothing) * softplus(-beta * gap) + wrong
        case "hinge":
            return torch.relu(1 - beta * gap)
        case "ipo":
            return (gap - 1 / (2 * beta)).square()


def log_odds(better: Tensor, worse: Tensor) -> Tensor:
    """How much the odds of one answer are above the other's, as a logarithm, of mean log-probabilities of a token."""
    better, worse = better.clamp(max=_CERTAIN), worse.clamp(max=_CERTAIN)
    return (better - worse) - (_log1mexp(better) - _log1mexp(worse))


def odds_ratio(better: Tensor, worse: Tensor) -> Tensor:
    """The loss of each pair of mean log-probabilities of a token, [pairs]."""
    return softplus(-log_odds(better, worse))


def prospect(scores: Tensor, wanted: Tensor, kl: float, *, beta: float, desirable: float, undesirable: float) -> Tensor:
    """The loss of each answer, [rows]; `wanted` says which of them are to be given, `kl` is z."""
    sign = torch.where(wanted, 1.0, -1.0)
    weights = torch.where(wanted, desirable, undesirable)
    return weights * torch.sigmoid(-beta * sign * (scores - kl))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of negative numbers, without cancellation on either side of -ln 2."""
    return torch.where(x < -0.6931471805599453, torch.log1p(-x.exp()), torch.log(-torch.expm1(x)))
