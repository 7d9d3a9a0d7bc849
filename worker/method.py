"""A stage that trains one model: its rows, its loss, and what it adds to the loop of training.

A new one is a file in `worker/stages`, its part of the spec (a class in the contract, with its traits), and its entry
in the registry, `worker.contract.spec.Stage`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from worker.context import Context
from worker.contract.order import Input
from worker.contract.stages import TrainStage
from worker.data import load_samples
from worker.dataset import Dataset, Hashed
from worker.distributed import Ranks
from worker.engine import Engine
from worker.evaluation import evaluate
from worker.feed import Feed, Update
from worker.losses import token_loss_sum
from worker.models import Loaded, load
from worker.packing import Batch, collate

Stage = TypeVar("Stage", bound=TrainStage)


@dataclass(frozen=True)
class Loop:
    """What the loop of training works with."""

    context: Context
    loaded: Loaded
    engine: Engine
    ranks: Ranks
    feed: Feed
    between: Callable[[], None]
    """To be called before each micro-batch, the same number of times on each rank; what it raises passes through."""


class Method(Generic[Stage]):
    """A language model's: the loss alone."""

    split: ClassVar[bool] = False
    """Whether samples may be cut where a packed row is full (raw text may, a dialogue may not)."""

    def __init__(self, stage: Stage):
        self.stage = stage

    @property
    def model_name(self) -> str:
        """The model's, for sentences."""
        return self.stage.model if isinstance(self.stage.model, str) else "the model from scratch"

    # The model and the data

    def load(self, context: Context) -> Loaded:
        """The model to train and its tokenizer, the same on every rank. Raises BadSpec; BadData where rows shape it."""
        return load(context.order.spec, context.order.inputs, context.store, waiting=context.channel.going_on)

    def check(self, loaded: Loaded) -> None:
        """Looks at the model before the rows are read. Raises BadSpec."""

    def read(self, source: Input, tokenizer: PreTrainedTokenizerBase) -> Sequence[Hashed]:
        """The rows of a data file, in its order. Raises BadData, with the line where it can be told."""
        return load_samples(source, self.stage, tokenizer)

    def prepare(self, dataset: Dataset) -> Dataset:
        """All rows, once it is known which of them are held out: may give each what it needs. Raises BadData."""
        return dataset

    def collate(self, rows: Sequence[Sequence[Any]], *, pad_id: int) -> Batch:
        """Makes a micro-batch of rows. No rows at all: something that takes part, and adds 0."""
        return collate(rows, pad_id=pad_id)

    # An update

    def open(self, loop: Loop) -> None:
        """At each attempt, before anything else of the loop: takes what it needs beside the model. All ranks call it.

        Raises WorkerFailure.
        """

    def begin(self, loop: Loop) -> None:
        """Before the very first step, with the weights as they are then. All ranks call it.

        After a resume it is not called again: what it found is in `state`.
        """

    def state(self) -> dict[str, Any]:
        """What a resumed run needs of this: plain values and tensors, the same on all ranks."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave."""

    def before_update(self, loop: Loop, update: Update, step: int) -> Update:
        """What is learnt from in update `step` (from 1): the rows' own micro-batches of this rank, or others.

        All ranks call it. After a resume it is called again for a step that was not done.
        """
        return update

    def ready(self, batch: Any) -> Any:
        """A micro-batch with what the objective needs beside the model; called just before it. All ranks call it."""
        return batch

    def objective(self, model: nn.Module, batch: Any) -> Tensor:
        """The sums over a micro-batch, [k] or a scalar, the loss first: a sum over what its items count as targets."""
        return token_loss_sum(model, batch)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """More points of an update, from the sums of the objective over all ranks, the loss first."""
        return {}

    # Beside updates

    def evaluate(
        self, engine: Engine, batches: list[Any], ranks: Ranks, between: Callable[[], None]
    ) -> dict[str, float]:
        """The points of an evaluation; see `worker.evaluation.evaluate`."""
        return evaluate(engine, batches, ranks, between)

    def finish(self, loop: Loop, state: dict[str, Tensor] | None) -> None:
        """May change the whole weights, by name, before they are saved; None but on rank 0. All ranks call it."""

    def files(self) -> dict[str, str]:
        """More files of the model's folder, by name: asked for after `finish`, on rank 0."""
        return {}
