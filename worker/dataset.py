"""What a job trains on and what it holds out, as samples."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from worker.contract.order import Input, Order
from worker.contract.stages import PretrainStage, RewardStage, SftStage
from worker.data import held_out, load_samples
from worker.packing import Collate, Item, collate
from worker.pairs import collate_pairs, load_comparisons


class Hashed(Item, Protocol):
    """An item that says what it is made of."""

    def parts(self) -> Iterator[bytes]:
        """All that it is, as bytes."""


@dataclass(frozen=True)
class Dataset:
    """The rows of a job: samples, or comparisons."""

    train: Sequence[Item]
    held_out: Sequence[Item]
    split: bool
    """Whether samples may be cut where a packed row is full (raw text may, a dialogue may not)."""
    hash: str
    """Of `train` as it is, every token and which of them are trained, and of the seed that orders it."""
    collate: Collate = collate
    """Makes a micro-batch of rows."""


def read_dataset(
    order: Order,
    stage: SftStage | PretrainStage | RewardStage,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: bool = False,
) -> Dataset:
    """The training rows, and those to evaluate on: a file of their own, or a share of the training rows.

    Raises BadData, with the line where it can be told.
    """

    def load(source: Input) -> Sequence[Any]:
        if not isinstance(stage, RewardStage):
            return load_samples(source, stage, tokenizer)
        name = stage.model if isinstance(stage.model, str) else "the model from scratch"
        cut = stage.data.truncate
        return load_comparisons(source, tokenizer, max_length=stage.max_length, truncate=cut, name=name)

    train = load(order.inputs["stage.data.train"])
    rest: Sequence[Any] = []
    if order.spec.evaluate is not None:
        if order.spec.evaluate.held_out is not None:
            train, rest = held_out(train, order.spec.evaluate.held_out, stage.seed)
        else:
            rest = load(order.inputs["evaluate.data"])
    made = collate_pairs if isinstance(stage, RewardStage) else collate
    return Dataset(train, rest, split, _hash_of(train, stage.seed), made)


def _hash_of(items: Sequence[Hashed], seed: int) -> str:
    """The file's own hash would not do: another tokenizer or template makes other samples of the same rows."""
    digest = hashlib.sha256(f"{seed} {len(items)}".encode())
    for item in items:
        for part in item.parts():
            digest.update(part)
    return digest.hexdigest()
