"""Loss and perplexity on rows that are not trained on. It leaves no trace in training."""

import math
from collections.abc import Callable

from worker.distributed import Ranks
from worker.engine import Engine
from worker.packing import MicroBatch
from worker.state import undisturbed


def evaluate(engine: Engine, batches: list[MicroBatch], ranks: Ranks, between: Callable[[], None]) -> dict[str, float]:
    """`eval/loss` (nats a trained token over all ranks) and `eval/perplexity`.

    `between` is called before every micro-batch, the same number of times on each rank; what it raises passes through.
    """
    nats = 0.0
    with undisturbed():
        for batch in batches:
            between()
            nats += engine.eval_micro(batch).item()
    total, trained = ranks.sum([nats, float(sum(batch.trained for batch in batches))])
    loss = total / max(1.0, trained)
    return {"eval/loss": loss, "eval/perplexity": math.exp(min(loss, 700.0))}
