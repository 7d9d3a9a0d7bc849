"""The rows of a data file as samples: token ids, and which of them are trained."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from worker import ahead
from worker.contract.order import Input
from worker.contract.rows import BadRow, Dialogue, Row, RowKind, Text, parse_line
from worker.contract.stages import TrainStage
from worker.dialogue import Rendered, TemplateChanges, rendered
from worker.errors import BadData
from worker.paths import local_path

# Rows that are tokenized at once: the tokenizer spreads them over the cores.
_BATCH = 1024


@dataclass(frozen=True, eq=False)
class Sample:
    """What one row became. `trained[t]`: `ids[t]` is a target, of position t - 1; never the first."""

    ids: NDArray[np.int32]  # [time]
    trained: NDArray[np.bool_]  # [time]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def targets(self) -> int:
        """How many of its tokens are trained."""
        return int(self.trained.sum())

    @property
    def footprint(self) -> int:
        """Tokens that it takes up in a batch."""
        return len(self.ids)

    def parts(self) -> Iterator[bytes]:
        """All that it is, as bytes: what a hash is made of."""
        yield len(self).to_bytes(8, "little")
        yield self.ids.tobytes()
        yield self.trained.tobytes()

    def cut(self, start: int, stop: int) -> "Sample":
        """The tokens from `start` up to `stop`. The first is no target: nothing stands before it any more."""
        trained = self.trained[start:stop].copy()
        trained[0] = False
        return Sample(self.ids[start:stop], trained)


def sample(ids: Sequence[int] | NDArray[np.int32], trained: Sequence[bool] | NDArray[np.bool_]) -> Sample:
    """A sample of plain values; its first token is made no target."""
    mask = np.array(trained, dtype=np.bool_)
    mask[:1] = False
    return Sample(np.array(ids, dtype=np.int32), mask)


def load_samples(source: Input, stage: TrainStage, tokenizer: PreTrainedTokenizerBase) -> list[Sample]:
    """A data file's samples, in its order. Raises BadData, with the line where it can be told.

    The file must still have the hash that it had when the job was accepted.
    """
    path = unchanged(source)
    try:
        samples = encode(read_rows(path, stage.traits.rows), tokenizer, stage, stage.max_length, stage.data.truncate)
    except BadData as error:
        raise BadData(f"{source.reference}: {error.message}") from None
    if not samples:
        raise BadData(f"{source.reference}: the file has no rows")
    return samples


def unchanged(source: Input) -> Path:
    """Where an input's file lies. Raises BadData unless it has the hash that it had when the job was accepted."""
    path = local_path(source.location)
    try:
        found = ahead.tree_hash(path)
    except OSError as error:
        raise BadData(f"{source.reference}: cannot be read: {error.strerror or error}") from None
    if found != source.sha256:
        raise BadData(f"{source.reference}: is not the file that it was when the job was accepted; submit the job anew")
    return path


def read_rows(path: Path, needed: Sequence[RowKind]) -> Iterator[tuple[int, Row]]:
    """The rows of a JSONL file with their lines, counted from 1; blank lines are passed over.

    Raises BadData, also for a row of another kind than those that are needed.
    """
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            text = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
            if not text.strip():
                continue
            try:
                kind, row = parse_line(text, line)
            except BadRow as error:
                raise BadData(str(error)) from None
            if kind not in needed:
                raise BadData(f"line {line}: has `{kind}`; needed are rows of `{'` or `'.join(needed)}`")
            yield line, row


def encode(
    rows: Iterable[tuple[int, Row]],
    tokenizer: PreTrainedTokenizerBase,
    stage: TrainStage,
    max_length: int,
    truncate: bool,
) -> list[Sample]:
    """Rows, each with its line, as samples in the same order. Raises BadData with the row's line.

    pretrain: the text and the token that ends it, all trained; documents may be longer than `max_length`, since packing
    cuts them. sft: the chat template's text, of which the assistant's turns are trained, each with the token that ends
    it; a dialogue longer than `max_length` tokens is refused, or with `truncate` loses its end.
    """
    if "text" in stage.traits.rows:
        return list(_texts(rows, tokenizer))
    return list(dialogues(rows, tokenizer, max_length, truncate))


def _batches(rows: Iterable[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    left = iter(rows)
    while batch := list(islice(left, _BATCH)):
        yield batch


def _texts(rows: Iterable[tuple[int, Row]], tokenizer: PreTrainedTokenizerBase) -> Iterator[Sample]:
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise BadData("the tokenizer has no token that ends a text (eos_token); documents could not be told apart")
    for some in _batches(rows):
        texts = [row.text for _, row in some if isinstance(row, Text)]
        for ids in tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]:
            yield sample([*ids, end], np.ones(len(ids) + 1, dtype=np.bool_))


def dialogues(
    rows: Iterable[tuple[int, Row]], tokenizer: PreTrainedTokenizerBase, max_length: int, truncate: bool
) -> Iterator[Sample]:
    """The samples of dialogues, as `encode` makes them for sft."""
    for some in _batches(rows):
        lines = [line for line, _ in some]
        texts = [_rendered(tokenizer, line, row) for line, row in some if isinstance(row, Dialogue)]
        # The template has written all special tokens there are to be; none is added.
        encoded = tokenizer(
            [text.text for text in texts],
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=True,
        )
        for line, text, ids, offsets in zip(lines, texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            whole = sample(ids, trained_tokens(offsets, text.spans))
            if len(whole) > max_length and not truncate:
                raise BadData(
                    f"line {line}: {len(whole)} tokens are more than max_length, {max_length}; "
                    "raise stage.max_length, or cut long rows by stage.data.truncate"
                )
            kept = whole.cut(0, max_length) if len(whole) > max_length else whole
            if not kept.targets:
                cut = f" within the {max_length} tokens that are left of it" if kept is not whole else ""
                raise BadData(f"line {line}: not one token of the assistant's turns is trained{cut}")
            yield kept


def _rendered(tokenizer: PreTrainedTokenizerBase, line: int, row: Dialogue) -> Rendered:
    try:
        return rendered(tokenizer, row.messages)
    except TemplateChanges as error:
        raise BadData(
            f"line {line}: the chat template changes its own prefix, so the assistant's turns cannot be found: {error}"
        ) from None
    except TemplateError as error:
        raise BadData(f"line {line}: the chat template refuses the dialogue: {error}") from None


def trained_tokens(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> NDArray[np.bool_]:
    """Which tokens lie in `spans` of the text, given each token's (first character, past the last): [time].

    A token over a span's border counts to it. Found by order, not by each token's own extent: byte-level tokenizers
    give tokens of nothing but blanks an empty extent, and those would fall out of the middle of an answer.
    """
    starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
    mask = np.zeros(len(offsets), dtype=np.bool_)
    for start, end in spans:
        mask[bisect_right(ends, start) : bisect_left(starts, end)] = True
    return mask


T = TypeVar("T")


def held_out(samples: Sequence[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    """(to train on, held out): a share of the samples, at least one of each, chosen by the seed. Raises BadData."""
    if len(samples) < 2:
        raise BadData("evaluate.held_out: one row cannot be parted into rows to train on and rows to hold out")
    count = min(max(1, round(share * len(samples))), len(samples) - 1)
    chosen = set(np.random.default_rng([seed, 0x0E7A1]).permutation(len(samples))[:count].tolist())
    train = [s for i, s in enumerate(samples) if i not in chosen]
    return train, [samples[i] for i in sorted(chosen)]
