"""A reward model: a scalar head on a language model, learnt from which of several answers is better.

The loss is -log sigmoid(s_better - s_worse - margin), a row's pairs averaged (`worker/ranking.py`). An answer's score
is read at its last token, the one that ends a turn (`worker/pairs.py`). The head starts at zero: every pair's loss is
ln 2 at first. At the end the scores' mean over reference answers becomes 0 (`worker/normalise.py`).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from worker.context import Context
from worker.contract.protocol import Output
from worker.contract.stages import RewardStage
from worker.dataset import read_dataset
from worker.distributed import Ranks, check_accelerator
from worker.engine import Engine
from worker.heads import HEAD, transformer
from worker.method import Method, Trained
from worker.models import load
from worker.normalise import Normalised, Seen, normalised, read, seen
from worker.ranking import evaluate_ranking, ranking
from worker.scores import check_padding
from worker.state import undisturbed
from worker.training import train

REFERENCE_ROWS = 1024
"""Rows whose best answers normalise the model, at the most."""


def run(context: Context) -> list[Output]:
    """Trains the spec's reward model. Gives the outputs on rank 0. Raises WorkerFailure."""
    stage = context.order.spec.stage
    assert isinstance(stage, RewardStage)
    check_accelerator(context.order.spec)
    with context.channel.working():
        loaded = load(context.order.spec, context.order.inputs, context.store, waiting=context.channel.going_on)
        check_padding(loaded.tokenizer, stage.model if isinstance(stage.model, str) else "the model from scratch")
        dataset = read_dataset(context.order, stage, loaded.tokenizer)
    return train(context, loaded, dataset, ranking(stage.center), Ranking(stage))


class Ranking(Method):
    """What a reward model adds to the loop."""

    def __init__(self, stage: RewardStage):
        self._stage = stage

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """`train/accuracy`."""
        _, correct, pairs = sums
        return {"train/accuracy": correct / max(1.0, pairs)}

    def evaluate(
        self, engine: Engine, batches: list[Any], ranks: Ranks, between: Callable[[], None]
    ) -> dict[str, float]:
        """The loss, accuracy and calibration on held-out rows."""
        return evaluate_ranking(engine, batches, ranks, between, self._stage.center)

    def finish(self, trained: Trained, state: dict[str, Tensor] | None) -> None:
        """Folds the mean score of the reference answers into the head, and tells of it in config.json and an event."""
        batches, of = trained.feed.reference(REFERENCE_ROWS)
        mine: list[Seen] = []
        with undisturbed():
            for batch in batches:
                trained.between()
                mine.append(seen(trained.engine.eval_micro(batch, read), batch))
        every = trained.ranks.gather([one for one in mine if one.batch.answers])
        if state is None:
            return
        names = [name for name in state if name.endswith((f"{HEAD}.weight", f"{HEAD}.modules_to_save.default.weight"))]
        (name,) = [name for name in names if "original_module" not in name]
        try:
            state[name], done = normalised(state[name], every, of)
        except ValueError as error:
            trained.context.channel.event("NotNormalised", f"scores keep their mean: {error}", level="warning")
            return
        _tell(trained, done)


def _tell(trained: Trained, done: Normalised) -> None:
    transformer(trained.loaded.model).config.reward_normalised = done.config()
    trained.context.channel.event("RewardNormalised", done.sentence())
