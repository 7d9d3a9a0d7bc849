"""What is told of preferences: sums over answers, which add up over batches and ranks, and the points they come to."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worker.distributed import Ranks
from worker.engine import Engine
from worker.pairs import PairBatch
from worker.preference.judged import JudgedBatch
from worker.state import undisturbed

PAIR_SUMS = ("loss", "rows", "chosen", "rejected", "correct", "pairs", "logp_chosen", "logp_rejected")
"""What `pair_sums` gives."""


def pair_sums(losses: Tensor, rewards: Tensor, logprobs: Tensor, batch: PairBatch) -> Tensor:
    """Sums over a micro-batch, of which the loss alone has a gradient: [PAIR_SUMS] in fp32.

    `losses` are those of pairs, `rewards` and `logprobs` those of answers. All pairs of a row weigh as much as a row;
    of two answers with the same reward, half counts as correct.
    """
    weights, better, worse = batch.weights, batch.better, batch.worse
    rewards, logprobs = rewards.detach(), logprobs.detach()
    gap = rewards[better] - rewards[worse]
    sums = [
        weights.sum(),
        (rewards[better] * weights).sum(),
        (rewards[worse] * weights).sum(),
        (gap > 0).float().sum() + 0.5 * (gap == 0).float().sum(),
        weights.new_tensor(float(len(gap))),
        (logprobs[better] * weights).sum(),
        (logprobs[worse] * weights).sum(),
    ]
    return torch.stack([(losses * weights).sum(), *sums])


def of_pairs(sums: list[float], where: str) -> dict[str, float]:
    """The points that `PAIR_SUMS` over all rows come to, without the loss. Their names begin with `where`: an update's
    with nothing, an evaluation's with `eval/`.
    """
    _, rows, chosen, rejected, correct, pairs, logp_chosen, logp_rejected = sums[: len(PAIR_SUMS)]
    rows = max(1.0, rows)
    return {
        f"{where or 'train/'}accuracy": correct / max(1.0, pairs),
        f"{where}rewards/chosen": chosen / rows,
        f"{where}rewards/rejected": rejected / rows,
        f"{where}rewards/margin": (chosen - rejected) / rows,
        f"{where}logps/chosen": logp_chosen / rows,
        f"{where}logps/rejected": logp_rejected / rows,
    }


JUDGED_SUMS = ("loss", "wanted", "unwanted", "chosen", "rejected", "correct", "logp_chosen", "logp_rejected")
"""What `judged_sums` gives."""


def judged_sums(losses: Tensor, rewards: Tensor, middle: float, logprobs: Tensor, batch: JudgedBatch) -> Tensor:
    """Sums over a micro-batch, of which the loss alone has a gradient: [JUDGED_SUMS] in fp32.

    All but `batch` are those of rows. An answer is judged right where its reward is above `middle` and it is one to
    give, or below and it is not; where it is neither above nor below, half counts.
    """
    rewards, logprobs = rewards.detach(), logprobs.detach()
    yes, no = batch.weights * batch.wanted, batch.weights * ~batch.wanted
    above = (rewards > middle).float() + 0.5 * (rewards == middle).float()
    sums = [
        yes.sum(),
        no.sum(),
        (rewards * yes).sum(),
        (rewards * no).sum(),
        (above * yes + (1 - above) * no).sum(),
        (logprobs * yes).sum(),
        (logprobs * no).sum(),
    ]
    return torch.stack([(losses * batch.weights).sum(), *sums])


def of_judged(sums: list[float], where: str) -> dict[str, float]:
    """The points that `JUDGED_SUMS` over all rows come to; see `of_pairs`. None of a label that no row has."""
    _, wanted, unwanted, chosen, rejected, correct, logp_chosen, logp_rejected = sums
    found = {f"{where or 'train/'}accuracy": correct / max(1.0, wanted + unwanted)}
    if wanted:
        found |= {f"{where}rewards/chosen": chosen / wanted, f"{where}logps/chosen": logp_chosen / wanted}
    if unwanted:
        found |= {f"{where}rewards/rejected": rejected / unwanted, f"{where}logps/rejected": logp_rejected / unwanted}
    if wanted and unwanted:
        found[f"{where}rewards/margin"] = chosen / wanted - rejected / unwanted
    return found


def evaluated(engine: Engine, batches: list[Any], ranks: Ranks, between: Callable[[], None]) -> list[float]:
    """The objective's sums over held-out batches and all ranks.

    `between` is called before every micro-batch, the same number of times on each rank; what it raises passes through.
    """
    parts = []
    with undisturbed():
        for batch in batches:
            between()
            parts.append(engine.eval_micro(batch).double().cpu())
    return ranks.sum(torch.stack(parts).sum(dim=0).tolist())
