"""Classification: the head of an encoder or a decoder learns what people have said of texts, or of words.

The losses are those of `worker/classify/objective.py`. What the classes are follows from the training rows, so these
are read before the model (`worker/classify/classes.py`). The last evaluation lies beside the model, in full.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from worker.classify import words
from worker.classify.classes import Classes, Lines, check_labels, classes_of, task_of
from worker.classify.examples import (
    ClassBatch,
    Example,
    check_variety,
    collating,
    examples,
    weighted,
    without_rows,
)
from worker.classify.model import load_classifier
from worker.classify.objective import class_logits, class_sums, weights_of
from worker.classify.tally import Evaluation, evaluate_classes
from worker.context import Context
from worker.contract.classify import ClassifyStage
from worker.contract.order import Input
from worker.contract.protocol import Output
from worker.data import read_rows, unchanged
from worker.distributed import Ranks
from worker.engine import Engine
from worker.errors import BadData, BadSpec
from worker.method import Loop, Method
from worker.models import Loaded
from worker.training import train


def run(context: Context) -> list[Output]:
    """Trains the spec's classifier. Gives the outputs on rank 0. Raises WorkerFailure."""
    stage = context.order.spec.stage
    assert isinstance(stage, ClassifyStage)
    return train(context, Classifying(stage))


class Classifying(Method[ClassifyStage]):
    """Labelled rows, and how well their labels are told."""

    def __init__(self, stage: ClassifyStage):
        super().__init__(stage)
        self._rows: dict[str, Lines] = {}
        self._classes: Classes | None = None
        self._weights: Tensor | None = None
        self._last: Evaluation | None = None

    @property
    def classes(self) -> Classes:
        """What is told apart; known once the model is loaded."""
        assert self._classes is not None
        return self._classes

    def load(self, context: Context) -> Loaded:
        """The model, with a head for the classes of the training rows."""
        order, source = context.order, context.order.inputs["stage.data.train"]

        def classes_for(known: tuple[str, ...] | None) -> Classes:
            return _of_file(source, lambda: classes_of(self._lines(source), self.stage, known))

        waiting = context.channel.going_on
        loaded, self._classes = load_classifier(order.spec, order.inputs, context.store, classes_for, waiting=waiting)
        if self.classes.task == "tokens" and not loaded.tokenizer.is_fast:
            raise BadSpec(f"stage.model: the tokenizer of {self.model_name} does not tell where words begin")
        return loaded

    def read(self, source: Input, tokenizer: PreTrainedTokenizerBase) -> Sequence[Example]:
        """The examples of a file; those of the training file settle the classes' weights."""
        rows = self._lines(source)
        made = _of_file(source, lambda: self._examples(rows, tokenizer))
        if self.stage.class_weights is None:
            return made
        if self._weights is None:
            found = weights_of(self.stage, self.classes, made)
            self._weights = torch.from_numpy(found) if found is not None else None
        assert self._weights is not None
        return made if self.classes.task == "multi_label" else weighted(made, self._weights.numpy())

    def _examples(self, rows: Lines, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
        if task_of(rows, self.stage) != self.classes.task:
            raise BadData("its rows are of another kind than those that are trained on")
        check_labels(rows, self.classes, "the classes")
        limit, cut = self.stage.max_length, self.stage.data.truncate
        return examples(rows, self.classes, tokenizer, max_length=limit, truncate=cut)

    def _lines(self, source: Input) -> Lines:
        """The rows of a file, which is read once."""
        if source.location not in self._rows:
            path = unchanged(source)
            rows = _of_file(source, lambda: list(read_rows(path, self.stage.traits.rows)))
            if not rows:
                raise BadData(f"{source.reference}: the file has no rows")
            self._rows[source.location] = rows
        return self._rows[source.location]

    def collate(self, rows: Sequence[Sequence[Example]], *, pad_id: int) -> ClassBatch:
        """Every text a row."""
        batch = collating(self.classes)(rows, pad_id=pad_id)
        assert isinstance(batch, ClassBatch)
        return batch

    def begin(self, loop: Loop) -> None:
        """Looks at the rows that are trained on, once some of them are held out. Raises BadData."""
        self._rows.clear()
        trained = [item for update in loop.feed.epoch(0) for row in update for item in row]
        check_variety(trained, self.classes)
        if loop.context.rank == 0 and (missing := without_rows(trained, self.classes)):
            said = f"no row that is trained on has the class {', '.join(missing[:20])}: it will not be learnt"
            loop.context.channel.event("ClassWithoutRows", said, level="warning")

    def objective(self, model: nn.Module, batch: ClassBatch) -> Tensor:
        """[loss, right, read]."""
        return class_sums(class_logits(model, batch), batch, self._positive)

    @property
    def _positive(self) -> Tensor | None:
        return self._weights if self.classes.task == "multi_label" else None

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """`train/accuracy`, where there are classes."""
        _, right, read = sums
        return {} if self.classes.task == "regression" else {"train/accuracy": right / max(1.0, read)}

    def evaluate(
        self, engine: Engine, batches: list[Any], ranks: Ranks, between: Callable[[], None]
    ) -> dict[str, float]:
        """The loss, and how well held-out labels are told."""
        self._last = evaluate_classes(engine, batches, ranks, between, self.classes, self._positive)
        return words.points(self._last)

    def finish(self, loop: Loop, state: dict[str, Tensor] | None) -> None:
        """Tells of the last evaluation; one that an earlier attempt has made is made again."""
        if self._last is None and (batches := loop.feed.held_out()):
            self.evaluate(loop.engine, batches, loop.ranks, loop.between)
        if self._last is not None and loop.context.rank == 0:
            loop.context.channel.event("Evaluated", words.table(self._last))

    def files(self) -> dict[str, str]:
        """`evaluation.json`, where rows are held out."""
        return {words.FILE: words.as_json(self._last)} if self._last is not None else {}


def _of_file(source: Input, read: Callable[[], Any]) -> Any:
    """What `read` gives; what it says of bad data is told of the file."""
    try:
        return read()
    except BadData as error:
        raise BadData(f"{source.reference}: {error.message}") from None
