"""Scores of whole answers, and values of every position: models with a scalar head, and what they say of a batch.

A score is read at an answer's last real token, found by the row's length. Never by token ids: a padding token that is
also the end of a text would hide that end (seen: index 4 of 0 to 5).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from worker.contract.order import Input
from worker.dialogue import answer_end
from worker.errors import BadSpec
from worker.heads import HEAD, head_of, hidden_states
from worker.models import scalar_model


class Rows(Protocol):
    """Rows of tokens, padded on the right with any token."""

    @property
    def input_ids(self) -> Tensor:
        """[rows, time]."""

    @property
    def position_ids(self) -> Tensor:
        """[rows, time]."""

    @property
    def lengths(self) -> Tensor:
        """[rows]: real tokens."""


@dataclass(frozen=True)
class TokenRows:
    """Rows of tokens to score."""

    input_ids: Tensor  # int64, [rows, time]
    position_ids: Tensor  # int64, [rows, time]
    lengths: Tensor  # int64, [rows]

    def to(self, device: torch.device | str) -> "TokenRows":
        """The same rows with their tensors on `device`."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            lengths=self.lengths.to(device, non_blocking=True),
        )


def token_rows(rows: Sequence[Sequence[int] | NDArray[np.int32]], *, pad_id: int) -> TokenRows:
    """Rows of ids, padded on the right to the longest. No rows at all: one token of padding."""
    lengths = [len(row) for row in rows] or [1]
    input_ids = np.full((len(lengths), max(lengths)), pad_id, dtype=np.int64)
    for r, row in enumerate(rows):
        input_ids[r, : len(row)] = row
    position_ids = np.tile(np.arange(max(lengths), dtype=np.int64), (len(lengths), 1))
    ids, positions, counts = torch.from_numpy(input_ids), torch.from_numpy(position_ids), torch.tensor(lengths)
    return TokenRows(ids, positions, counts)


def last_hidden(model: nn.Module, batch: Rows) -> Tensor:
    """The hidden state at each row's last real token, which is what the head reads of it: [rows, size]."""
    every = hidden_states(model, batch)
    return every[torch.arange(len(every), device=every.device), batch.lengths - 1]


def scores(model: nn.Module, batch: Rows) -> Tensor:
    """One score a row, at its last real token, in fp32: [rows]. `model` may be bare, wrapped by peft or an engine."""
    found: Tensor = head_of(model)(last_hidden(model, batch))[:, 0]
    return found


def values(model: nn.Module, batch: Rows) -> Tensor:
    """A value at every position, in fp32: [rows, time]. What stands behind a row's last token means nothing."""
    found: Tensor = head_of(model)(hidden_states(model, batch))[..., 0]
    return found


def reward_model(
    source: Input,
    name: str,
    store: Path,
    dtype: torch.dtype,
    notes: list[str],
    *,
    path: str = "stage.model",
    waiting: Callable[[], None] = lambda: None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A reward model that is there already, for `scores`, and its tokenizer. Raises BadSpec for a model without a head.

    The arguments are those of `worker.models.pretrained`.
    """
    model, tokenizer, learnt = scalar_model(source, name, store, dtype, notes, path=path, waiting=waiting)
    if not learnt:
        raise BadSpec(f"{path}: {name} is no reward model: it has no score head; give the output of a reward stage")
    return model.eval(), tokenizer


def value_model(
    source: Input,
    name: str,
    store: Path,
    dtype: torch.dtype,
    notes: list[str],
    *,
    path: str = "stage.critic.model",
    waiting: Callable[[], None] = lambda: None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A critic for `values`, from a reward model or a language model: that backbone, and a head that starts at zero.

    The arguments are those of `worker.models.pretrained`. Raises BadSpec.
    """
    model, tokenizer, _ = scalar_model(source, name, store, dtype, notes, path=path, waiting=waiting)
    torch.nn.init.zeros_(model.get_parameter(f"{HEAD}.weight"))
    model.config.reward_normalised = None  # a reward model's, and this is none any more
    return model, tokenizer


def check_padding(tokenizer: PreTrainedTokenizerBase, name: str, path: str = "stage.model") -> None:
    """Raises BadSpec where padding is the token that ends an answer: transformers would read the token before it."""
    if tokenizer.pad_token_id in (answer_end(tokenizer, name, path), tokenizer.eos_token_id):
        raise BadSpec(
            f"{path}: the tokenizer of {name} pads with {tokenizer.pad_token}, which also ends texts, and has no other "
            "special token; others would read scores at the wrong place. Give its tokenizer a pad_token of its own"
        )
