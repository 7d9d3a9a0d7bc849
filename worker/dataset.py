"""What a job trains on and what it holds out, as samples."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from worker.contract.order import Order
from worker.contract.spec import PretrainStage, SftStage
from worker.data import Sample, held_out, load_samples


@dataclass(frozen=True)
class Dataset:
    """The rows of a job, as samples."""

    train: Sequence[Sample]
    held_out: Sequence[Sample]
    split: bool
    """Whether samples may be cut where a packed row is full (raw text may, a dialogue may not)."""
    hash: str
    """What `train` was made from; the same hash gives the same samples in the same order."""


def read_dataset(
    order: Order, stage: SftStage | PretrainStage, tokenizer: PreTrainedTokenizerBase, *, split: bool
) -> Dataset:
    """The training rows, and those to evaluate on: a file of their own, or a share of the training rows.

    Raises BadData, with the line where it can be told.
    """
    source = order.inputs["stage.data.train"]
    train: Sequence[Sample] = load_samples(source, stage, tokenizer)
    rest: Sequence[Sample] = []
    share = None
    if order.spec.evaluate is not None:
        share = order.spec.evaluate.held_out
        if share is not None:
            train, rest = held_out(train, share, stage.seed)
        else:
            rest = load_samples(order.inputs["evaluate.data"], stage, tokenizer)
    digest = hashlib.sha256(f"{source.sha256} {share} {stage.seed}".encode()).hexdigest()
    return Dataset(train, rest, split, digest)
