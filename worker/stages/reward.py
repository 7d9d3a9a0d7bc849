"""A reward model: a scalar head on a language model, learnt from which of several answers is better.

The loss is -log sigmoid(s_better - s_worse - margin), a row's pairs averaged (`worker/ranking.py`). An answer's score
is read at its last token, the one that ends a turn (`worker/pairs.py`). The head starts at zero: every pair's loss is
ln 2 at first. At the end the scores' mean over reference answers becomes 0 (`worker/normalise.py`).
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from worker.context import Context
from worker.contract.order import Input
from worker.contract.protocol import Output
from worker.contract.stages import RewardStage
from worker.distributed import Ranks
from worker.engine import Engine
from worker.heads import HEAD, transformer
from worker.method import Loop, Method
from worker.models import Loaded
from worker.normalise import Normalised, Seen, normalised, read, seen
from worker.pairs import Comparison, PairBatch, collate_pairs, load_comparisons
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
    return train(context, Ranking(stage))


class Ranking(Method[RewardStage]):
    """Comparisons, and how well scores rank them."""

    def __init__(self, stage: RewardStage):
        super().__init__(stage)
        self._objective = ranking(stage.center)

    def check(self, loaded: Loaded) -> None:
        """Padding must not be what ends an answer."""
        check_padding(loaded.tokenizer, self.model_name)

    def read(self, source: Input, tokenizer: PreTrainedTokenizerBase) -> Sequence[Comparison]:
        """The comparisons of a file."""
        limit, cut = self.stage.max_length, self.stage.data.truncate
        return load_comparisons(source, tokenizer, max_length=limit, truncate=cut, name=self.model_name)

    def collate(self, rows: Sequence[Sequence[Comparison]], *, pad_id: int) -> PairBatch:
        """Every answer a row."""
        return collate_pairs(rows, pad_id=pad_id)

    def objective(self, model: nn.Module, batch: PairBatch) -> Tensor:
        """[loss, correct, pairs]."""
        return self._objective(model, batch)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """`train/accuracy`."""
        _, correct, pairs = sums
        return {"train/accuracy": correct / max(1.0, pairs)}

    def evaluate(
        self, engine: Engine, batches: list[Any], ranks: Ranks, between: Callable[[], None]
    ) -> dict[str, float]:
        """The loss, accuracy and calibration on held-out rows."""
        return evaluate_ranking(engine, batches, ranks, between, self.stage.center)

    def finish(self, loop: Loop, state: dict[str, Tensor] | None) -> None:
        """Folds the mean score of the reference answers into the head, and tells of it in config.json and an event."""
        batches, of = loop.feed.reference(REFERENCE_ROWS)
        mine: list[Seen] = []
        with undisturbed():
            for batch in batches:
                loop.between()
                mine.append(seen(loop.engine.eval_micro(batch, read), batch))
        every = loop.ranks.gather([one for one in mine if one.batch.answers])
        if state is None:
            return
        names = [name for name in state if name.endswith((f"{HEAD}.weight", f"{HEAD}.modules_to_save.default.weight"))]
        (name,) = [name for name in names if "original_module" not in name]
        try:
            state[name], done = normalised(state[name], every, of)
        except ValueError as error:
            loop.context.channel.event("NotNormalised", f"scores keep their mean: {error}", level="warning")
            return
        _tell(loop, done)


def _tell(loop: Loop, done: Normalised) -> None:
    transformer(loop.loaded.model).config.reward_normalised = done.config()
    loop.context.channel.event("RewardNormalised", done.sentence())
