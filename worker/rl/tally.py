"""What the updates of an iteration measured, and the iteration's curves."""

from statistics import fmean

import torch
from torch import Tensor

from worker.distributed import Ranks
from worker.rl.advantages import explained_variance
from worker.rl.credit import Credit
from worker.rl.hand import Hand
from worker.rl.kl import k3
from worker.rl.objectives import POLICY_SUMS, VALUE_SUMS


class Sums:
    """Adds up what the micro-batches of one update measured, on this rank."""

    def __init__(self) -> None:
        self._policy: list[Tensor] = []
        self._value: list[Tensor] = []
        self._ptx: list[Tensor] = []
        self._ptx_trained = 0

    def policy(self, sums: Tensor) -> None:
        """Takes in the actor's, [POLICY_SUMS]."""
        self._policy.append(sums.float().cpu())

    def value(self, sums: Tensor) -> None:
        """Takes in the critic's, [VALUE_SUMS]."""
        self._value.append(sums.float().cpu())

    def ptx(self, nats: Tensor, trained: int) -> None:
        """Takes in nats of dialogues, of which the update trains `trained` tokens over all ranks."""
        self._ptx.append(nats.float().cpu())
        self._ptx_trained = trained

    def over(self, ranks: Ranks) -> dict[str, float]:
        """Means over the update's tokens, on all ranks."""
        policy = torch.stack(self._policy).double()
        value = torch.stack(self._value).double() if self._value else torch.zeros(1, len(VALUE_SUMS))
        ptx = float(torch.stack(self._ptx).double().sum()) if self._ptx else 0.0
        added = ranks.sum([*policy.sum(0).tolist(), *value.sum(0).tolist(), ptx])
        of_policy = dict(zip(POLICY_SUMS, added, strict=False))
        of_value = dict(zip(VALUE_SUMS, added[len(POLICY_SUMS) :], strict=False))
        tokens = max(1.0, of_policy["tokens"])
        errors = ranks.gather([float(policy[:, POLICY_SUMS.index("ratio_error")].max())])
        told = {
            "tokens": tokens,
            "policy_loss": of_policy["policy_loss"] / tokens,
            "clipped": of_policy["clipped"] / tokens,
            "entropy": of_policy["entropy"] / tokens,
            "step_kl": of_policy["step_kl"] / tokens,
            "ratio_error": max(errors),
        }
        if self._value:
            told |= {"value_loss": of_value["loss"] / tokens, "values_clipped": of_value["clipped"] / tokens}
        if self._ptx_trained:
            told["ptx_loss"] = added[-1] / self._ptx_trained
        return told


def metrics(hand: Hand, credit: Credit, *, stage: str, coef: float, lr: float) -> dict[str, float]:
    """An iteration's curves, by the names of `worker.contract.metrics`; its own begin with the `stage`'s."""
    kl, tokens = credit.kl.double().sum(1), credit.mask.sum()
    found = {
        f"{stage}/reward": fmean(one.reward for one in hand.judged),
        f"{stage}/return": float((credit.scores.double() - coef * kl).mean()),
        f"{stage}/kl": float(kl.mean()),
        f"{stage}/kl_token": float(k3(credit.kl.double())[credit.mask].sum() / tokens),
        f"{stage}/kl_coef": coef,
        f"{stage}/length": float(tokens) / len(hand.everyone),
        f"{stage}/ended": fmean(answer.ended for answer in hand.everyone),
        "train/lr": lr,
        **{f"{stage}/{name}": fmean(update[name] for update in hand.tally) for name in _MEANS if name in hand.tally[0]},
        f"{stage}/ratio_error": hand.tally[0]["ratio_error"],
        f"{stage}/step_kl": hand.tally[-1]["step_kl"],
        **{f"time/{name}": seconds for name, seconds in hand.seconds.items()},
        f"{stage}/generated_per_second": float(tokens) / max(1e-9, hand.seconds.get("generate", 0.0)),
    }
    if "value_loss" in hand.tally[0]:
        found[f"{stage}/explained_variance"] = explained_variance(credit.returns, credit.values, credit.mask)
    for title in hand.judged[0].terms:
        found[f"reward/{title}"] = fmean(one.terms[title] for one in hand.judged)
    return found


_MEANS = (
    "policy_loss",
    "value_loss",
    "ptx_loss",
    "entropy",
    "clipped",
    "values_clipped",
    "actor_grad_norm",
    "critic_grad_norm",
)
