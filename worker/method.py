"""What a stage adds to the loop of training: what it tells of an update, how it evaluates, what it does at the end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from worker.context import Context
from worker.distributed import Ranks
from worker.engine import Engine
from worker.evaluation import evaluate
from worker.feed import Feed
from worker.models import Loaded


@dataclass(frozen=True)
class Trained:
    """What has been trained, for a stage's last touch."""

    context: Context
    loaded: Loaded
    engine: Engine
    ranks: Ranks
    feed: Feed
    between: Callable[[], None]
    """To be called before each micro-batch, the same number of times on each rank; what it raises passes through."""


class Method:
    """A language model's: the loss alone, and nothing at the end."""

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """More points of an update, from the sums of the objective over all ranks, the loss first."""
        return {}

    def evaluate(
        self, engine: Engine, batches: list[Any], ranks: Ranks, between: Callable[[], None]
    ) -> dict[str, float]:
        """The points of an evaluation; see `worker.evaluation.evaluate`."""
        return evaluate(engine, batches, ranks, between)

    def finish(self, trained: Trained, state: dict[str, Tensor] | None) -> None:
        """May change the whole weights, by name, before they are saved; None but on rank 0. All ranks call it."""
