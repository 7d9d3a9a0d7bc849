"""How far the actor is from its reference, and what that costs.

Estimates of KL(actor | reference) from tokens that the actor chose, by `log_ratio` = log actor - log reference, in
nats, of each (Schulman, "Approximating KL divergence", 2020). Any shape; the result has the same.

The mean of k1 is the KL, and it varies most. k2 is biased, and varies least. The mean of k3 is the KL as well; it is
never negative and varies less. None of them is a loss here: the gradient of k1 has mean 0. The KL is paid for in the
reward (`advantages.token_rewards`).
"""

import torch
from torch import Tensor

from worker.contract.ppo import Kl


def k1(log_ratio: Tensor) -> Tensor:
    """log p/q: without bias."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """(log p/q)^2 / 2: never negative, biased."""
    return log_ratio.square() / 2


def k3(log_ratio: Tensor) -> Tensor:
    """q/p - 1 - log q/p: never negative, and without bias."""
    return torch.expm1(-log_ratio) + log_ratio


class AdaptiveKl:
    """The price of a nat of KL, which rises where an answer's KL is above the target, and falls where it is below.

    e = clip(KL / target - 1, -0.2, 0.2); coef <- coef x (1 + e x answers / horizon)     (Ziegler et al., 2019, 2.2)

    Without a target the price is fixed.
    """

    def __init__(self, coef: float, target: float | None, horizon: float):
        self.coef = coef
        self._target, self._horizon = target, horizon

    @classmethod
    def of(cls, kl: Kl) -> "AdaptiveKl":
        """As a spec has it."""
        return cls(kl.coef, kl.target, kl.horizon)

    def update(self, kl: float, answers: int) -> float:
        """Takes in the mean KL of so many answers, in nats an answer. Gives the price from now on."""
        if self._target is not None:
            error = min(max(kl / self._target - 1, -0.2), 0.2)
            # Beyond 5 horizons of answers at once the price would be negative.
            self.coef *= max(1 + error * answers / self._horizon, 0.0)
        return self.coef

    def state(self) -> dict[str, float]:
        """All that goes into a checkpoint."""
        return {"coef": self.coef}

    def load(self, state: dict[str, float]) -> None:
        """Puts back what `state` gave."""
        self.coef = state["coef"]
