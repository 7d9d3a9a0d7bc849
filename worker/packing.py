"""Which samples an update sees, in which rows, and the tensors of its micro-batches.

All of it is a pure function of (samples, seed, epoch), so that a position (epoch, update) is all that a resumed run
needs, and the union of an update's rows is the same for any number of ranks and any accumulation.

Samples in one row must not see each other. Position ids restart at 0 with every sample, and no attention mask is
given: transformers then finds the borders in the position ids and attends within them alone. With an all-ones mask, or
with the cache on, it would not look for them, and samples would leak into each other without a word.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import LongTensor, Tensor

from worker.data import Sample

IGNORED = -100
"""The label of a position that is not trained."""

# Best-fit decreasing over everything would pair the same samples in every epoch; a window keeps the rows varied, and
# at this size leaves well under 1 % of a row unfilled on dialogues.
_WINDOW = 4096

Row = list[Sample]
"""What lies behind one another in one row of a batch: one sample when not packing."""


class Item(Protocol):
    """What one row of a data file became."""

    def __len__(self) -> int:
        """Real tokens."""

    @property
    def targets(self) -> int:
        """What its loss is a sum over: trained tokens, or one row."""

    @property
    def footprint(self) -> int:
        """Tokens that it takes up in a batch."""


T = TypeVar("T", bound=Item)


class Batch(Protocol):
    """What an engine takes at a time: some items as tensors."""

    @property
    def input_ids(self) -> Tensor:
        """[rows, time]."""

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""

    @property
    def trained(self) -> int:
        """The sum of its items' targets."""

    def to(self, device: torch.device | str) -> Any:
        """The same batch with its tensors on `device`."""


@dataclass(frozen=True)
class MicroBatch:
    """What a rank takes at a time. All tensors are [rows, time].

    `labels[r, t]` is the token that the logits at `[r, t]` predict, so nothing has to be shifted; IGNORED where nothing
    is trained. `attention_mask` is None: the rows are padded on the right, where a causal model's real tokens never
    look, or packed, where a mask would switch the samples' isolation off.
    """

    input_ids: LongTensor
    labels: LongTensor
    position_ids: LongTensor
    attention_mask: Tensor | None
    tokens: int
    """Real tokens, padding not counted."""
    trained: int
    """Positions with a label."""

    def to(self, device: torch.device | str) -> "MicroBatch":
        """The same micro-batch with its tensors on `device`."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
        )


Collate = Callable[..., Batch]
"""Makes a micro-batch of rows: `collate(rows, pad_id=...)`. No rows at all: something that takes part, and adds 0."""


def updates(
    samples: Sequence[T], *, seed: int, epoch: int, batch: int, pack_to: int | None, split: bool = False
) -> list[list[list[T]]]:
    """One epoch in order, as updates of `batch` rows; the last one may be smaller, and no sample is left out.

    `pack_to`: None for one sample a row, or the tokens a row holds. Packed samples are fitted into rows whole (best fit
    decreasing); with `split` (pretraining) they are laid end to end, and cut where a row is full, so that all rows but
    the last are full. Raises ValueError for a sample that is longer than a row, unless `split`.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(samples)).tolist()
    rows: list[list[Any]] = []
    if pack_to is None:
        rows = [[samples[i]] for i in order]
    elif split:
        rows = _laid_end_to_end([samples[i] for i in order], pack_to)  # type: ignore[misc]  # texts alone are cut
    else:
        for start in range(0, len(order), _WINDOW):
            rows += [[samples[i] for i in row] for row in _fitted(samples, order[start : start + _WINDOW], pack_to)]
        # Decreasing order puts the long samples first; an epoch should not.
        rows = [rows[i] for i in np.random.default_rng([seed, epoch, 1]).permutation(len(rows))]
    return [rows[start : start + batch] for start in range(0, len(rows), batch)]


def rows_vary(samples: int, *, split: bool) -> bool:
    """Whether so many samples, packed, may make more rows in one epoch than in another.

    Laid end to end they always make as many. How many rows a window is fitted into depends on its samples' lengths
    alone, and in one window there are the same samples every time.
    """
    return not split and samples > _WINDOW


def _fitted(samples: Sequence[Item], window: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: the longest first, each into the fullest row that still has room for it."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens free, row), ascending
    for index in sorted(window, key=lambda i: -len(samples[i])):  # stable: equal lengths stay in shuffled order
        length = len(samples[index])
        if length > capacity:
            raise ValueError(f"a sample of {length} tokens does not fit into a row of {capacity}")
        at = bisect_left(room, (length, 0))
        if at == len(room):
            rows.append([index])
            free, row = capacity - length, len(rows) - 1
        else:
            free, row = room.pop(at)
            rows[row].append(index)
            free -= length
        if free:
            insort(room, (free, row))
    return rows


def _laid_end_to_end(samples: list[Sample], capacity: int) -> list[Row]:
    """Full rows. What goes on in the next row begins there at position 0, since it cannot see what came before it."""
    rows: list[Row] = []
    row: Row = []
    free = capacity
    for sample in samples:
        start = 0
        while start < len(sample):
            piece = sample if len(sample) - start <= free and not start else sample.cut(start, start + free)
            row.append(piece)
            start += len(piece)
            free -= len(piece)
            if not free:
                rows.append(row)
                row, free = [], capacity
    return [*rows, row] if row else rows


def counts(rows: Sequence[Sequence[Item]]) -> tuple[int, int]:
    """(real tokens, trained tokens) of rows, such as those of a whole update over all ranks."""
    tokens = sum(len(sample) for row in rows for sample in row)
    trained = sum(sample.targets for row in rows for sample in row)
    return tokens, trained


def size_of(row: Sequence[Item]) -> int:
    """Tokens that a row takes up in a batch."""
    return sum(item.footprint for item in row)


def micro_batches(
    update: Sequence[list[T]],
    *,
    rank: int,
    world: int,
    micro_batch: int,
    pad_id: int,
    count: int = 0,
    making: Collate | None = None,
) -> list[Any]:
    """A rank's part of an update: at least `count` micro-batches of at most `micro_batch` rows, as many on each rank.

    Rows are taken longest first, so that those of one micro-step are of like length: little padding, and no rank waits
    for another. The longest come first: memory that does not suffice shows at once. What a short update lacks to equal
    shares is made up with padding, of which nothing is trained. `making` makes a micro-batch (absent: `collate`).
    """
    made = making or collate
    step = micro_batch * world
    longest_first = sorted(update, key=lambda row: -size_of(row))
    starts = range(0, max(len(update), count * step), step)
    return [made(longest_first[start : start + step][rank::world], pad_id=pad_id) for start in starts]


def collate(rows: Sequence[Row], *, pad_id: int) -> MicroBatch:
    """Rows as one micro-batch, padded on the right to the longest. No rows at all: one token of padding."""
    lengths = [sum(map(len, row)) for row in rows]
    shape = (max(1, len(rows)), max(lengths, default=1))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    for r, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        start = 0
        for sample in row:
            end = start + len(sample)
            input_ids[r, start:end] = sample.ids
            position_ids[r, start:end] = np.arange(len(sample))
            # The logits at t predict the token at t + 1. A sample's first token has nothing before it to predict it.
            labels[r, start : end - 1] = np.where(sample.trained[1:], sample.ids[1:], IGNORED)
            start = end
        # Behind one sample, padding counts on: an unpacked row has no border, and needs no mask. Behind several it
        # counts from 0 again, as one more sample. Either way no position is past the longest row's last.
        first = length if len(row) == 1 else 0
        position_ids[r, length:] = np.arange(first, first + shape[1] - length)
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(position_ids),
        attention_mask=None,
        tokens=sum(lengths),
        trained=int((labels != IGNORED).sum()),
    )
