"""Rows of compared answers as tokens: every answer as a rollout ends it, and which of a row's answers is better.

An answer is read as the actor writes it: the prompt up to the opening of the assistant's turn, the answer's words, and
the token that ends the turn. Nothing follows, and nothing is missing; else a reward model would be asked about texts of
another kind than it has learnt from.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from worker.contract.order import Input
from worker.contract.rows import Judged, Pair, Ranked, Row, Turn
from worker.data import read_rows, unchanged
from worker.dialogue import TemplateChanges, answer_end, answered
from worker.errors import BadData
from worker.rl.prompts import as_messages, prompt_ids
from worker.scores import token_rows

# Rows whose answers are tokenized at once: the tokenizer spreads them over the cores.
_BATCH = 512


@dataclass(frozen=True, eq=False)
class Comparison:
    """One row: answers to one prompt, and which of them are better than which."""

    answers: tuple[NDArray[np.int32], ...]
    """Prompt, answer and its end, each [time]."""
    better: NDArray[np.int64]  # [pairs]: which answer is the better one
    worse: NDArray[np.int64]  # [pairs]
    margins: NDArray[np.float32]  # [pairs]: by how much its score should be higher, at the least
    best: NDArray[np.int64]
    """Its best answers: those whose mean score normalises the model."""
    prompt: int = 0
    """Tokens of the prompt, with which each answer begins."""

    def __len__(self) -> int:
        """Real tokens of all answers."""
        return sum(map(len, self.answers))

    @property
    def targets(self) -> int:
        """What the loss is a mean over: rows."""
        return 1

    @cached_property
    def footprint(self) -> int:
        """Tokens that it takes up in a batch, padding counted."""
        return len(self.answers) * max(map(len, self.answers))

    def parts(self) -> Iterator[bytes]:
        """All that it is, as bytes: what a hash is made of."""
        yield len(self.answers).to_bytes(8, "little")
        for ids in self.answers:
            yield len(ids).to_bytes(8, "little")
            yield ids.tobytes()
        yield from (array.tobytes() for array in (self.better, self.worse, self.margins))


def compared(
    answers: Sequence[Sequence[int] | NDArray[np.int32]], ranks: Sequence[float], margin: float = 0.0, prompt: int = 0
) -> Comparison:
    """A comparison of answers by how good each is: all pairs in which one is better; ties are no pairs."""
    pairs = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] > ranks[j]]
    return Comparison(
        answers=tuple(np.array(ids, dtype=np.int32) for ids in answers),
        better=np.array([i for i, _ in pairs], dtype=np.int64),
        worse=np.array([j for _, j in pairs], dtype=np.int64),
        margins=np.full(len(pairs), margin, dtype=np.float32),
        best=np.array([i for i, rank in enumerate(ranks) if rank == max(ranks)], dtype=np.int64),
        prompt=prompt,
    )


@dataclass(frozen=True)
class PairBatch:
    """What a rank takes at a time: the answers of whole rows, and the pairs among them."""

    input_ids: Tensor  # int64, [answers, time]
    position_ids: Tensor  # int64, [answers, time]
    lengths: Tensor  # int64, [answers]: real tokens
    better: Tensor  # int64, [pairs]: an answer of the batch
    worse: Tensor  # int64, [pairs]
    margins: Tensor  # [pairs]
    weights: Tensor  # [pairs]: 1 / pairs of its row, so that each row weighs 1
    best: Tensor  # int64, the best answers of all rows
    tokens: int
    """Real tokens, padding not counted."""
    trained: int
    """Rows."""
    answers: int
    """Real ones: a batch without any has a row of padding."""

    def to(self, device: torch.device | str) -> "PairBatch":
        """The same micro-batch with its tensors on `device`."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})


def collate_pairs(rows: Sequence[Sequence[Comparison]], *, pad_id: int) -> PairBatch:
    """Rows (of one comparison each) as one micro-batch, padded on the right. No rows at all: one token of padding."""
    comparisons = [comparison for row in rows for comparison in row]
    tokens = token_rows([ids for comparison in comparisons for ids in comparison.answers], pad_id=pad_id)
    firsts = np.cumsum([0, *(len(comparison.answers) for comparison in comparisons)])

    def joined(name: str) -> Any:
        parts = [getattr(c, name) + first for c, first in zip(comparisons, firsts, strict=False)]
        return torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *parts]))

    margins = np.concatenate([np.zeros(0, np.float32), *(c.margins for c in comparisons)])
    weights = np.concatenate(
        [np.zeros(0, np.float32), *(np.full(len(c.better), 1 / len(c.better), np.float32) for c in comparisons)]
    )
    return PairBatch(
        input_ids=tokens.input_ids,
        position_ids=tokens.position_ids,
        lengths=tokens.lengths,
        better=joined("better"),
        worse=joined("worse"),
        margins=torch.from_numpy(margins),
        weights=torch.from_numpy(weights),
        best=joined("best"),
        tokens=sum(map(len, comparisons)),
        trained=len(comparisons),
        answers=int(firsts[-1]),
    )


def load_comparisons(
    source: Input, tokenizer: PreTrainedTokenizerBase, *, max_length: int, truncate: bool, name: str
) -> list[Comparison]:
    """A data file's comparisons, in its order. Raises BadData, with the line where it can be told.

    The file must still have the hash that it had when the job was accepted. `name` is the model's, for messages.
    """
    return read_comparisons(
        unchanged(source), source.reference, tokenizer, max_length=max_length, truncate=truncate, name=name
    )


def read_comparisons(
    path: Path, reference: str, tokenizer: PreTrainedTokenizerBase, *, max_length: int, truncate: bool, name: str
) -> list[Comparison]:
    """The comparisons of a JSONL file; see `load_comparisons`."""
    end = answer_end(tokenizer, name)
    try:
        rows = encode_pairs(
            read_rows(path, ("chosen", "answers")), tokenizer, end, max_length=max_length, truncate=truncate
        )
        comparisons = list(rows)
    except BadData as error:
        raise BadData(f"{reference}: {error.message}") from None
    if not comparisons:
        raise BadData(f"{reference}: the file has no rows")
    return comparisons


def encode_pairs(
    rows: Iterable[tuple[int, Row]],
    tokenizer: PreTrainedTokenizerBase,
    end: int,
    *,
    max_length: int,
    truncate: bool,
) -> Iterator[Comparison]:
    """Rows, each with its line, as comparisons in the same order; see `encode_answers`."""
    for row, answers, prompt in encode_answers(rows, tokenizer, end, max_length=max_length, truncate=truncate):
        yield compared_of(row, answers, prompt)


def encode_answers(
    rows: Iterable[tuple[int, Row]],
    tokenizer: PreTrainedTokenizerBase,
    end: int,
    *,
    max_length: int,
    truncate: bool,
) -> Iterator[tuple[Row, list[NDArray[np.int32]], int]]:
    """Of each row, with its line: the row, its answers behind their prompt, and how many tokens the prompt has.

    `end` is the token that every answer ends with. A row with an answer longer than `max_length` tokens is refused, or
    with `truncate` the beginning of its prompt is cut, by as much for all of its answers. Raises BadData with the line.
    """
    left = iter(rows)
    while some := list(islice(left, _BATCH)):
        texts = [_texts(tokenizer, line, row) for line, row in some]
        flat = [text for _, answers in texts for text in answers]
        # Where there is a template, it has written all special tokens there are to be; none is added.
        encoded = iter(tokenizer(flat, add_special_tokens=False, return_attention_mask=False)["input_ids"])
        for (line, row), (prompt, answers) in zip(some, texts, strict=True):
            ids = [_ended(prompt, next(encoded), text, tokenizer, end) for text in answers]
            cut = _excess(ids, len(prompt.ids), line, max_length, truncate)
            yield row, [answer[cut:] for answer in ids], len(prompt.ids) - cut


@dataclass(frozen=True)
class _Prompt:
    """A prompt as a rollout begins with it."""

    ids: list[int]
    text: str | None
    """None: there is no chat template, and answers are tokenized by themselves."""


def answer_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], answer: str, end: int
) -> list[int]:
    """A prompt, an answer's words and `end`, as a reward model with this tokenizer reads them.

    Raises TemplateChanges and TemplateError as `worker.dialogue.answered` does.
    """
    prompt, (text,) = _together(tokenizer, messages, [answer])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found: list[int] = _ended(prompt, ids, text, tokenizer, end).tolist()
    return found


def _together(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], answers: list[str]
) -> tuple[_Prompt, list[str]]:
    """The prompt, and what is tokenized of each answer: with a template, the prompt and the answer together."""
    ids = prompt_ids(tokenizer, list(messages))
    if not tokenizer.chat_template:
        return _Prompt(ids, None), answers
    turns = [Turn.model_validate(message) for message in messages]
    pairs = [answered(tokenizer, turns, answer) for answer in answers]
    return _Prompt(ids, pairs[0][0]), [prompt + answer for prompt, answer in pairs]


def _texts(tokenizer: PreTrainedTokenizerBase, line: int, row: Row) -> tuple[_Prompt, list[str]]:
    assert isinstance(row, Pair | Ranked | Judged)
    match row:
        case Pair():
            answers = [row.chosen, row.rejected]
        case Ranked():
            answers = [answer.text for answer in row.answers]
        case Judged():
            answers = [row.completion]
    try:
        return _together(tokenizer, as_messages(row.prompt), answers)
    except TemplateChanges as error:
        raise BadData(f"line {line}: the chat template changes its own prefix: {error}") from None
    except TemplateError as error:
        raise BadData(f"line {line}: the chat template refuses the dialogue: {error}") from None


def _ended(
    prompt: _Prompt, ids: list[int], text: str, tokenizer: PreTrainedTokenizerBase, end: int
) -> NDArray[np.int32]:
    """Prompt, answer and end. The prompt's own tokens stand first, as in a rollout, whatever the answer begins with."""
    if prompt.text is None:
        ids = [*prompt.ids, *ids]
    elif ids[: len(prompt.ids)] != prompt.ids:
        ids = [*prompt.ids, *tokenizer(text[len(prompt.text) :], add_special_tokens=False)["input_ids"]]
    return np.array(ids if ids[-1] == end else [*ids, end], dtype=np.int32)


def _excess(answers: list[NDArray[np.int32]], prompt: int, line: int, max_length: int, truncate: bool) -> int:
    """Tokens to cut from the prompt's beginning, so that the longest answer fits."""
    longest = max(map(len, answers))
    over = longest - max_length
    if over <= 0:
        return 0
    if not truncate:
        raise BadData(
            f"line {line}: prompt and answer have {longest} tokens, more than max_length, {max_length}; "
            "raise stage.max_length, or cut long prompts by stage.data.truncate"
        )
    if over >= prompt:
        raise BadData(
            f"line {line}: an answer alone has {longest - prompt} tokens, and max_length is {max_length}; an answer is "
            "never cut, since it is judged as a whole"
        )
    return over


def compared_of(row: Row, answers: Sequence[NDArray[np.int32]], prompt: int) -> Comparison:
    """A row's answers, behind `prompt` tokens of prompt each, as a comparison."""
    if isinstance(row, Pair):
        return compared(answers, [1.0, 0.0], row.margin or 0.0, prompt)
    assert isinstance(row, Ranked)
    return compared(answers, [answer.score for answer in row.answers], prompt=prompt)
