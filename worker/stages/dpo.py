"""Direct preference optimization (Rafailov et al., 2023): the better of two answers becomes likelier than the worse.

By how much is measured from the model as it began, whose log-probabilities are asked once (`worker/preference`). The
losses are in `worker/preference/losses.py`. At the beginning the model is its own reference: without margins every
pair's loss is ln 2.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from worker.context import Context
from worker.contract.order import Input
from worker.contract.preference import DpoStage
from worker.contract.protocol import Output
from worker.dataset import Dataset
from worker.distributed import Ranks
from worker.engine import Engine
from worker.method import Loop, Method
from worker.models import Loaded, without_dropout
from worker.pairs import Comparison
from worker.preference.losses import pairwise
from worker.preference.pairs import (
    Preference,
    PreferenceBatch,
    collate_preferences,
    load_preferences,
    numbered,
    told,
)
from worker.preference.points import evaluated, of_pairs, pair_sums
from worker.preference.reference import Reference
from worker.training import train


def run(context: Context) -> list[Output]:
    """Trains the spec's model on its comparisons. Gives the outputs on rank 0. Raises WorkerFailure."""
    stage = context.order.spec.stage
    assert isinstance(stage, DpoStage)
    return train(context, Dpo(stage))


class Dpo(Method[DpoStage]):
    """Comparisons, and rewards as log-probabilities from a reference."""

    def __init__(self, stage: DpoStage):
        super().__init__(stage)
        self.reference: Reference | None = None  # of as many answers as `prepare` finds

    def check(self, loaded: Loaded) -> None:
        """What is compared is one network, now and as it began: noise in it would be taken for learning."""
        without_dropout(loaded.model)

    def read(self, source: Input, tokenizer: PreTrainedTokenizerBase) -> Sequence[Comparison]:
        """The comparisons of a file."""
        return load_preferences(source, self.stage, tokenizer)

    def prepare(self, dataset: Dataset) -> Dataset:
        """Numbers all answers, by which the reference's log-probabilities are looked up."""
        made, answers = numbered(dataset)
        if not self.stage.reference_free:
            self.reference = Reference(answers)
        return made

    def collate(self, rows: Sequence[Sequence[Preference]], *, pad_id: int) -> PreferenceBatch:
        """Every answer a row."""
        return collate_preferences(rows, pad_id=pad_id)

    def begin(self, loop: Loop) -> None:
        """Asks the model as it begins."""
        if self.reference is not None:
            self.reference.ask(loop, lambda model, batch: told(model, batch).answers, lambda batch: batch.numbers)

    def state(self) -> dict[str, Any]:
        """The reference's log-probabilities."""
        return self.reference.state() if self.reference is not None else {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on with them."""
        if self.reference is not None:
            self.reference.load_state(state)

    def objective(self, model: nn.Module, batch: PreferenceBatch) -> Tensor:
        """[PAIR_SUMS]."""
        stage, said = self.stage, told(model, batch)
        scores = said.answers if self.reference is None else said.answers - self.reference.of(batch.numbers)
        if stage.by_token:
            scores = scores / said.tokens
        losses = pairwise(
            scores[batch.better],
            scores[batch.worse],
            batch.margins,
            loss=stage.loss,
            beta=stage.beta,
            label_smoothing=stage.label_smoothing,
        )
        return pair_sums(losses, stage.beta * scores, said.answers, batch)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Rewards, their margin, accuracy and log-probabilities."""
        return of_pairs(sums, "")

    def evaluate(
        self, engine: Engine, batches: list[Any], ranks: Ranks, between: Callable[[], None]
    ) -> dict[str, float]:
        """The same on held-out rows, and the loss."""
        sums = evaluated(engine, batches, ranks, between)
        return {"eval/loss": sums[0] / max(1.0, sums[1])} | of_pairs(sums, "eval/")
