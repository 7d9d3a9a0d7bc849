"""Rows of single answers for kto: what is read of a file, the mismatched pairs, and what a rank takes at a time.

A mismatched pair is a row's prompt with another row's answer. How far the model has moved on such pairs is KTO's
estimate of its divergence from the reference. Each row has one partner for the whole job, by the seed: so the
reference is asked once, and neither the number of ranks nor the accumulation changes which pairs there are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from worker.contract.order import Input
from worker.contract.rows import Judged
from worker.contract.stages import TrainStage
from worker.data import read_rows, unchanged
from worker.dialogue import answer_end
from worker.errors import BadData
from worker.pairs import encode_answers
from worker.rl.objectives import AnswerBatch, answer_batch

Ids = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Judgement:
    """One answer to a prompt, and whether it is one to give."""

    prompt: Ids
    answer: Ids
    """With the token that ends it."""
    wanted: bool
    other_prompt: Ids
    """The prompt, with its beginning cut where the other answer would not fit behind it."""
    other_answer: Ids
    """The partner's."""
    number: int = 0
    """Among all rows of the job."""

    def __len__(self) -> int:
        """Real tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer)

    @property
    def targets(self) -> int:
        """What the loss is a mean over: rows."""
        return 1

    @property
    def footprint(self) -> int:
        """Tokens that it takes up in a batch."""
        return max(len(self), len(self.other_prompt) + len(self.other_answer))

    def parts(self) -> Iterator[bytes]:
        """All that it is, as bytes: what a hash is made of."""
        for ids in (self.prompt, self.answer):
            yield len(ids).to_bytes(8, "little")
            yield ids.tobytes()
        yield bytes([self.wanted])


def load_judgements(source: Input, stage: TrainStage, tokenizer: PreTrainedTokenizerBase) -> list[Judgement]:
    """A data file's rows in its order, without partners yet. Raises BadData, with the line where it can be told."""
    path = unchanged(source)
    end = answer_end(tokenizer, stage.model if isinstance(stage.model, str) else "the model from scratch")
    cut = stage.data.truncate
    found = []
    nothing = np.zeros(0, dtype=np.int32)
    try:
        rows = read_rows(path, stage.traits.rows)
        for row, (ids,), prompt in encode_answers(rows, tokenizer, end, max_length=stage.max_length, truncate=cut):
            assert isinstance(row, Judged)
            found.append(Judgement(ids[:prompt], ids[prompt:], row.label, nothing, nothing))
    except BadData as error:
        raise BadData(f"{source.reference}: {error.message}") from None
    if not found:
        raise BadData(f"{source.reference}: the file has no rows")
    return found


def check_labels(judgements: Sequence[Judgement], reference: str) -> None:
    """Raises BadData where all answers to learn from have the same label."""
    labels = {judgement.wanted for judgement in judgements}
    if len(labels) == 1:
        only = "true" if labels == {True} else "false"
        raise BadData(
            f"{reference}: every row has `label: {only}`; kto learns from answers to give and from others, so there "
            "must be rows of both kinds"
        )


def partnered(
    judgements: Sequence[Judgement], reference: str, *, seed: int, max_length: int, first: int
) -> list[Judgement]:
    """The rows with their partners, and numbered from `first`. Raises BadData where all have the same prompt.

    No row's partner answers the same prompt; and unless most rows share one prompt, every answer is a partner's once.
    """
    if not judgements:
        return []
    rng = np.random.default_rng([seed, len(judgements)])
    groups: dict[bytes, list[int]] = {}
    for index in rng.permutation(len(judgements)).tolist():
        groups.setdefault(judgements[index].prompt.tobytes(), []).append(index)
    if len(groups) < 2:
        raise BadData(
            f"{reference}: all rows have the same prompt; kto tells how far the model has moved from answers to other "
            "prompts, so there must be two"
        )
    # Prompt by prompt: whoever stands as many places on as the largest group has members is of another group.
    order = [index for group in groups.values() for index in group]
    largest = max(map(len, groups.values()))
    partners = {index: order[(place + largest) % len(order)] for place, index in enumerate(order)}
    made = []
    for index, judgement in enumerate(judgements):
        partner = judgements[partners[index]]
        if partner.prompt.tobytes() == judgement.prompt.tobytes():
            others = [i for i in order if judgements[i].prompt.tobytes() != judgement.prompt.tobytes()]
            partner = judgements[int(rng.choice(others))]
        room = max_length - len(partner.answer)  # at least 1: its own prompt has a token
        made.append(
            replace(
                judgement,
                other_prompt=judgement.prompt[-room:],
                other_answer=partner.answer,
                number=first + index,
            )
        )
    return made


@dataclass(frozen=True)
class JudgedBatch:
    """What a rank takes at a time: rows, and their mismatched pairs."""

    said: AnswerBatch
    other: AnswerBatch
    wanted: Tensor  # bool, [rows]
    numbers: Tensor  # int64, [rows]: among all rows of the job
    weights: Tensor  # [rows]: 1, and 0 of padding
    tokens: int
    """Real tokens, padding not counted."""
    trained: int
    """Rows."""

    @property
    def input_ids(self) -> Tensor:
        """[rows, time]."""
        return self.said.input_ids

    def to(self, device: torch.device | str) -> Self:
        """The same micro-batch with its tensors on `device`."""
        names = ("said", "other", "wanted", "numbers", "weights")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def collate_judgements(rows: Sequence[Sequence[Judgement]], *, pad_id: int) -> JudgedBatch:
    """Rows (of one answer each) as one micro-batch, padded on the right. No rows at all: one token of padding."""
    found = [judgement for row in rows for judgement in row]
    return JudgedBatch(
        said=answer_batch([j.prompt for j in found], [j.answer.tolist() for j in found], pad_id=pad_id),
        other=answer_batch([j.other_prompt for j in found], [j.other_answer.tolist() for j in found], pad_id=pad_id),
        wanted=torch.tensor([j.wanted for j in found] or [True]),
        numbers=torch.tensor([j.number for j in found] or [0]),
        weights=torch.tensor([1.0] * len(found) or [0.0]),
        tokens=sum(map(len, found)),
        trained=len(found),
    )
