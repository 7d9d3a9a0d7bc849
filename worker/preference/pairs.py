"""Rows of compared answers for dpo and orpo: what is read of a file, and what a rank takes at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from worker.contract.order import Input
from worker.contract.stages import TrainStage
from worker.data import read_rows, unchanged
from worker.dataset import Dataset
from worker.dialogue import answer_end
from worker.errors import BadData
from worker.logprobs import log_probabilities
from worker.packing import IGNORED
from worker.pairs import Comparison, PairBatch, collate_pairs, encode_pairs


@dataclass(frozen=True, eq=False)
class Preference(Comparison):
    """Answers to one prompt, and the number of the first of them among all answers of a job."""

    number: int = 0


def load_preferences(source: Input, stage: TrainStage, tokenizer: PreTrainedTokenizerBase) -> list[Comparison]:
    """A data file's comparisons, in its order. Raises BadData, with the line where it can be told.

    Two answers of the same tokens are refused: there is nothing to learn from what cannot be told apart.
    """
    path = unchanged(source)
    end = answer_end(tokenizer, stage.model if isinstance(stage.model, str) else "the model from scratch")
    try:
        rows = list(read_rows(path, stage.traits.rows))
        made = encode_pairs(rows, tokenizer, end, max_length=stage.max_length, truncate=stage.data.truncate)
        found = []
        for (line, _), comparison in zip(rows, made, strict=True):
            _check_differ(comparison, line)
            found.append(comparison)
    except BadData as error:
        raise BadData(f"{source.reference}: {error.message}") from None
    if not found:
        raise BadData(f"{source.reference}: the file has no rows")
    return found


def _check_differ(comparison: Comparison, line: int) -> None:
    for better, worse in zip(comparison.better, comparison.worse, strict=True):
        if np.array_equal(comparison.answers[better], comparison.answers[worse]):
            raise BadData(
                f"line {line}: the chosen answer and the rejected one are the same tokens: there is nothing to learn "
                "from this row"
            )


def numbered(dataset: Dataset) -> tuple[Dataset, int]:
    """A job's comparisons with their answers' numbers, and how many answers there are."""
    count = 0

    def told(comparison: Comparison) -> Preference:
        nonlocal count
        number, count = count, count + len(comparison.answers)
        known = {field.name: getattr(comparison, field.name) for field in fields(Comparison)}
        return Preference(**known, number=number)

    train, held_out = ([told(row) for row in rows] for rows in (dataset.train, dataset.held_out))
    return replace(dataset, train=train, held_out=held_out), count


@dataclass(frozen=True)
class PreferenceBatch(PairBatch):
    """Whole rows of answers, with what their tokens are looked up by."""

    labels: Tensor  # int64, [answers, time]: the token after each position; IGNORED where it is not asked for
    starts: Tensor  # int64, [answers]: the position that chooses the answer's first token
    numbers: Tensor  # int64, [answers]: among all answers of the job

    @property
    def attention_mask(self) -> None:
        """None: padding is on the right, where no real token looks."""
        return None


def collate_preferences(rows: Sequence[Sequence[Preference]], *, pad_id: int, prompts: bool = False) -> PreferenceBatch:
    """Rows (of one comparison each) as one micro-batch. No rows at all: one token of padding.

    With `prompts` the tokens of a better answer's prompt are asked for, too.
    """
    pairs = collate_pairs(rows, pad_id=pad_id)
    labels = torch.full_like(pairs.input_ids, IGNORED)
    better = set(pairs.better.tolist())
    starts, numbers = [], []
    for comparison in (comparison for row in rows for comparison in row):
        for n, ids in enumerate(comparison.answers):
            first = 0 if prompts and len(starts) in better else comparison.prompt - 1
            labels[len(starts), first : len(ids) - 1] = torch.from_numpy(ids[first + 1 :].astype(np.int64))
            starts.append(comparison.prompt - 1)
            numbers.append(comparison.number + n)
    told: dict[str, Any] = vars(pairs)
    return PreferenceBatch(
        **told,
        labels=labels,
        starts=torch.tensor(starts or [0]),
        numbers=torch.tensor(numbers or [0]),
    )


@dataclass(frozen=True)
class Told:
    """What a model says of the answers of a batch: [answers] each, in nats."""

    answers: Tensor
    """Log-probabilities, summed over an answer's tokens."""
    tokens: Tensor
    """How many those are; at least 1."""
    everything: Tensor
    """Log-probabilities, summed over all labelled tokens."""
    labelled: Tensor
    """How many those are; at least 1."""

    @property
    def means(self) -> Tensor:
        """Log-probabilities of an answer's tokens, mean."""
        return self.answers / self.tokens


def told(model: nn.Module, batch: PreferenceBatch) -> Told:
    """The log-probabilities of a batch's answers by `model`, which may be bare, wrapped by peft or an engine."""
    every = log_probabilities(model, batch)  # [answers, time]
    labelled = batch.labels != IGNORED
    answered = labelled & (torch.arange(every.shape[1], device=every.device) >= batch.starts[:, None])
    return Told(
        answers=(every * answered).sum(dim=1),
        tokens=answered.sum(dim=1).clamp(min=1),
        everything=every.sum(dim=1),
        labelled=labelled.sum(dim=1).clamp(min=1),
    )
