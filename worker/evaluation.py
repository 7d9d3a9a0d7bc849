"""Loss, perplexity and accuracy on rows that are not trained on. It leaves no trace in training."""

import math
from collections.abc import Callable, Sequence

import torch

from worker.distributed import Ranks
from worker.engine import Engine
from worker.losses import text_sums
from worker.packing import MicroBatch
from worker.state import undisturbed


def evaluate(engine: Engine, batches: list[MicroBatch], ranks: Ranks, between: Callable[[], None]) -> dict[str, float]:
    """`eval/loss` (nats a trained token over all ranks), `eval/perplexity` and `eval/accuracy`, of the likeliest token.

    `between` is called before every micro-batch, the same number of times on each rank; what it raises passes through.
    """
    found = torch.zeros(3, dtype=torch.float64)
    with undisturbed():
        for batch in batches:
            between()
            found += engine.eval_micro(batch, text_sums).double().cpu()
    return of_sums(ranks.sum(found.tolist()))


def of_sums(sums: Sequence[float]) -> dict[str, float]:
    """The points that `text_sums` over all rows come to."""
    nats, right, tokens = sums
    loss = nats / max(1.0, tokens)
    return {
        "eval/loss": loss,
        "eval/perplexity": math.exp(min(loss, 700.0)),
        "eval/accuracy": right / max(1.0, tokens),
    }
