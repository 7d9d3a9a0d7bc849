"""What a job trains on and what it holds out, as samples."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from worker.contract.order import Order
from worker.contract.stages import PretrainStage, SftStage
from worker.data import Sample, held_out, load_samples


@dataclass(frozen=True)
class Dataset:
    """The rows of a job, as samples."""

    train: Sequence[Sample]
    held_out: Sequence[Sample]
    split: bool
    """Whether samples may be cut where a packed row is full (raw text may, a dialogue may not)."""
    hash: str
    """Of `train` as it is, every token and which of them are trained, and of the seed that orders it."""


def read_dataset(
    order: Order, stage: SftStage | PretrainStage, tokenizer: PreTrainedTokenizerBase, *, split: bool
) -> Dataset:
    """The training rows, and those to evaluate on: a file of their own, or a share of the training rows.

    Raises BadData, with the line where it can be told.
    """
    source = order.inputs["stage.data.train"]
    train: Sequence[Sample] = load_samples(source, stage, tokenizer)
    rest: Sequence[Sample] = []
    if order.spec.evaluate is not None:
        if order.spec.evaluate.held_out is not None:
            train, rest = held_out(train, order.spec.evaluate.held_out, stage.seed)
        else:
            rest = load_samples(order.inputs["evaluate.data"], stage, tokenizer)
    return Dataset(train, rest, split, _hash_of(train, stage.seed))


def _hash_of(samples: Sequence[Sample], seed: int) -> str:
    """The file's own hash would not do: another tokenizer or template makes other samples of the same rows."""
    digest = hashlib.sha256(f"{seed} {len(samples)}".encode())
    for sample in samples:
        digest.update(len(sample).to_bytes(8, "little"))
        digest.update(sample.ids.tobytes())
        digest.update(sample.trained.tobytes())
    return digest.hexdigest()
