"""Labelled rows as tokens, and where their classes are read.

Texts are tokenized as the tokenizer does by itself, with its special tokens, which is what transformers' pipelines do:
a model sees in training what it will be asked. A decoder's class is read at the last real token, a word's at the first
piece of the word.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from worker.classify.classes import Classes, Lines, labels_of
from worker.contract.rows import Labelled, Multilabelled, Tagged
from worker.errors import BadData
from worker.packing import Collate

# Rows that are tokenized at once: the tokenizer spreads them over the cores.
_BATCH = 1024


@dataclass(frozen=True, eq=False)
class Example:
    """One row as tokens, with the labels that are read of it."""

    ids: NDArray[np.int32]  # [time]
    at: NDArray[np.int64]  # [read]: where each label is read
    labels: NDArray[Any]  # int64 [read]; of several classes float32 [1, classes]; of a regression float32 [1]
    weights: NDArray[np.float32]  # [read]: of each label in the loss

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def targets(self) -> float:
        """What the loss is a mean over: the labels' weights."""
        return float(self.weights.sum(dtype=np.float64))

    @property
    def footprint(self) -> int:
        """Tokens that it takes up in a batch."""
        return len(self.ids)

    def parts(self) -> Iterator[bytes]:
        """All that it is, as bytes: what a hash is made of."""
        for array in (self.ids, self.at, self.labels, self.weights):
            yield len(array).to_bytes(8, "little")
            yield array.tobytes()


def examples(
    rows: Lines, classes: Classes, tokenizer: PreTrainedTokenizerBase, *, max_length: int, truncate: bool
) -> list[Example]:
    """Rows, each with its line, as examples in the same order. Raises BadData with the row's line.

    A row longer than `max_length` tokens is refused, or with `truncate` loses its end, and the tags there.
    """
    return list(_encoded(rows, classes, tokenizer, max_length, truncate))


def _encoded(
    rows: Lines, classes: Classes, tokenizer: PreTrainedTokenizerBase, max_length: int, truncate: bool
) -> Iterator[Example]:
    words = classes.task == "tokens"
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        texts = [_text(row) for _, row in some]
        every = tokenizer(texts, return_attention_mask=False, return_offsets_mapping=words)
        for number, (line, row) in enumerate(some):
            ids, offsets = every["input_ids"][number], every["offset_mapping"][number] if words else []
            if (long := len(ids)) > max_length:
                if not truncate:
                    raise BadData(
                        f"line {line}: {long} tokens are more than max_length, {max_length}; "
                        "raise stage.max_length, or cut long rows by stage.data.truncate"
                    )
                cut: Any = tokenizer(
                    texts[number], truncation=True, max_length=max_length, return_offsets_mapping=words
                )
                ids, offsets = cut["input_ids"], cut["offset_mapping"] if words else []
            if not ids:
                raise BadData(f"line {line}: the tokenizer makes no token of it")
            if not words and ids[-1] == tokenizer.pad_token_id:
                said = "transformers would look for a decoder's class before it"
                raise BadData(f"line {line}: ends in the token that pads, {tokenizer.pad_token}; {said}")
            if isinstance(row, Tagged):
                yield _tagged(row, line, classes, ids, offsets, cut=long > max_length)
            else:
                yield _labelled(row, classes, ids)


def _text(row: Any) -> str:
    return " ".join(row.tokens) if isinstance(row, Tagged) else row.text


def _labelled(row: Any, classes: Classes, ids: list[int]) -> Example:
    labels: NDArray[Any]
    if isinstance(row, Multilabelled):
        labels = np.zeros((1, len(classes.names)), dtype=np.float32)
        labels[0, [classes.numbers[name] for name in labels_of(row)]] = 1
    elif classes.task == "regression":
        assert isinstance(row, Labelled)
        labels = np.array([row.label], dtype=np.float32)
    else:
        labels = np.array([classes.numbers[name] for name in labels_of(row)], dtype=np.int64)
    return Example(np.array(ids, dtype=np.int32), np.array([len(ids) - 1]), labels, np.ones(1, dtype=np.float32))


def _tagged(
    row: Tagged, line: int, classes: Classes, ids: list[int], offsets: Sequence[tuple[int, int]], *, cut: bool
) -> Example:
    """A word's label is read at the first token with a character of it; the others have none."""
    at: list[int] = []
    start, token = 0, 0
    for number, word in enumerate(row.tokens):
        end = start + len(word)
        # A token's extent may begin at the blank before the word; special tokens have none.
        while token < len(offsets) and (offsets[token][1] <= start or offsets[token][0] == offsets[token][1]):
            token += 1
        if token == len(offsets) and cut:
            break
        if token == len(offsets) or offsets[token][0] >= end or token in at[-1:]:
            raise BadData(f"line {line}: `tokens.{number}`: the tokenizer makes no token of {word!r}")
        at.append(token)
        start = end + 1
    if not at:
        raise BadData(f"line {line}: not one word is left of it within stage.max_length")
    labels = [classes.numbers[name] for name in labels_of(row)[: len(at)]]
    return Example(
        np.array(ids, dtype=np.int32),
        np.array(at, dtype=np.int64),
        np.array(labels, dtype=np.int64),
        np.ones(len(at), dtype=np.float32),
    )


def check_variety(items: Sequence[Example], classes: Classes) -> None:
    """Raises BadData where all that is trained on says the same: there is nothing to learn."""
    found = np.unique(np.concatenate([item.labels for item in items]), axis=0)
    if len(found) > 1:
        return
    if classes.task == "regression":
        raise BadData(f"all rows that are trained on have the label {found[0]:g}: there is nothing to learn")
    if classes.task == "multi_label":
        raise BadData("all rows that are trained on have the same labels: there is nothing to tell apart")
    only = classes.names[int(found[0])]
    raise BadData(f"all rows that are trained on have the label `{only}`: one class is nothing to tell apart")


def without_rows(items: Sequence[Example], classes: Classes) -> list[str]:
    """The classes that no row has."""
    if classes.task == "regression":
        return []
    labels = np.concatenate([item.labels for item in items])
    several = classes.task == "multi_label"
    having = labels.sum(axis=0) if several else np.bincount(labels, minlength=len(classes.names))
    return [name for name, count in zip(classes.names, having, strict=True) if not count]


def weighted(items: Sequence[Example], weights: NDArray[np.float32]) -> list[Example]:
    """The same examples, each label with its class's weight."""
    return [replace(item, weights=weights[item.labels]) for item in items]


@dataclass(frozen=True)
class ClassBatch:
    """What a rank takes at a time: rows of tokens, padded on the right, and the labels that are read of them."""

    input_ids: Tensor  # int64, [rows, time]
    attention_mask: Tensor  # int64, [rows, time]
    position_ids: Tensor  # int64, [rows, time]
    rows: Tensor  # int64, [read]: whose row
    times: Tensor  # int64, [read]: which position
    labels: Tensor  # int64 [read]; of several classes float32 [read, classes]; of a regression float32 [read]
    weights: Tensor  # float32, [read]
    tokens: int
    """Real tokens, padding not counted."""
    trained: float
    """The labels' weights, summed."""

    def to(self, device: torch.device | str) -> "ClassBatch":
        """The same micro-batch with its tensors on `device`."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})


def collating(classes: Classes) -> Collate:
    """Makes micro-batches of these classes' examples."""
    shape = (0, len(classes.names)) if classes.task == "multi_label" else (0,)
    kind = np.int64 if classes.task in ("single_label", "tokens") else np.float32
    return partial(_collate, nothing=np.zeros(shape, dtype=kind))


def _collate(rows: Sequence[Sequence[Example]], *, pad_id: int, nothing: NDArray[Any]) -> ClassBatch:
    """Rows (of one example each) as one micro-batch. No rows at all: one token of padding, of which nothing is read."""
    items = [item for row in rows for item in row]
    lengths = [len(item) for item in items] or [1]
    input_ids = np.full((len(lengths), max(lengths)), pad_id, dtype=np.int64)
    for r, item in enumerate(items):
        input_ids[r, : len(item)] = item.ids
    none = np.zeros(0, dtype=np.int64)
    times = np.arange(max(lengths), dtype=np.int64)
    return ClassBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy((times[None, :] < np.array(lengths)[:, None]).astype(np.int64)),
        position_ids=torch.from_numpy(np.tile(times, (len(lengths), 1))),
        rows=torch.from_numpy(np.concatenate([none, *(np.full(len(i.at), r) for r, i in enumerate(items))])),
        times=torch.from_numpy(np.concatenate([none, *(item.at for item in items)])),
        labels=torch.from_numpy(np.concatenate([nothing, *(item.labels for item in items)])),
        weights=torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *(item.weights for item in items)])),
        tokens=sum(map(len, items)),
        trained=sum(item.targets for item in items),
    )
