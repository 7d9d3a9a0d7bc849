"""What the rest of the product must know of a stage beside its fields. A stage states it once, in its own class."""

from dataclasses import dataclass
from typing import Literal

from worker.contract.rows import RowKind

Head = Literal["words", "score"]
"""What a model's last layer tells of a position: the odds of the next token, or one number."""

Kind = Literal[
    "model", "reward", "any_model", "classifiable", "adapter", "reward_or_adapter", "tokenizer", "rehearsal", "data"
]  # fmt: skip
"""What a reference must be: a `model` writes text, `reward` scores it, `any_model` is one of them, `classifiable` tells
classes apart or may learn to, an `adapter` makes a model score; a `rehearsal` only looks like one."""

Nature = Literal["writer", "scorer", "critic", "classifier", "adapter", "scoring_adapter", "rehearsal"]
"""What an output is: it writes text, scores answers, foresees the reward, tells classes apart, is a part of a model, or
is none at all."""


@dataclass(frozen=True)
class Traits:
    """Of a stage that trains."""

    rows: tuple[RowKind, ...]
    """The kinds of rows that it trains on."""
    lr: float
    """The peak learning rate where a spec gives none and all weights are trained."""
    lr_of_lora: float = 2e-4
    """The same with adapters, which bear a higher rate than weights that were learnt at length."""
    head: Head = "words"
    begins_with: Kind = "model"
    """What it can go on from."""
    gives: Nature = "writer"
    gives_adapter: Nature = "adapter"
    sequences: int = 1
    """Sequences that a row is taken to hold, where its memory is estimated."""
    models: tuple[str, ...] = ()
    """Other language models that it asks, by their fields, such as `teacher.model`. They are frozen; beside the
    reference there may be a `deepspeed`."""
    headline: str = "train/loss"
    """The curve that tells most of how it does."""
    worded: bool = True
    """Whether the loss is made of logits over the vocabulary."""
