"""A finished model on a test set: what all kinds of rows have in common, and texts, dialogues and comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from worker import ahead
from worker.context import Context
from worker.contract.evaluation import EvaluateStage
from worker.contract.order import Input
from worker.contract.parts import DeepSpeed
from worker.contract.rows import BadRow, RowKind, parse_line
from worker.contract.stages import PretrainStage, SftStage
from worker.data import Sample, encode, read_rows
from worker.dialogue import check_template
from worker.distributed import Ranks
from worker.errors import BadData, Interrupted, Stopped
from worker.evaluation import of_sums
from worker.losses import text_sums
from worker.models import DTYPES, check_length, pretrained
from worker.packing import Batch, Collate, Item, collate, micro_batches
from worker.pairs import collate_pairs, read_comparisons
from worker.paths import local_path
from worker.ranking import Tally
from worker.rl.frozen import Frozen
from worker.scores import reward_model, scores

MODEL, TEST = "stage.model", "stage.data.test"


@dataclass(frozen=True)
class Exam:
    """One rank's view of an evaluation."""

    context: Context
    stage: EvaluateStage
    ranks: Ranks
    device: torch.device
    notes: list[str]
    """What a person should know of the models, each a sentence."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return DTYPES[self.context.order.spec.deepspeed.precision]

    def between(self) -> None:
        """Before each micro-batch, as often on each rank. Raises Stopped where any rank was asked to stop."""
        self.context.channel.going_on()
        if self.ranks.agree_to_stop(self.context.channel.stop) is not None:
            raise Stopped

    def interruptible(self) -> None:
        """While this rank does what others do not. Raises Interrupted where it was asked to stop."""
        self.context.channel.going_on()
        if self.context.channel.stop is not None:
            raise Interrupted

    def language_model(self, path: str, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A model that writes text, and its tokenizer. Raises BadSpec."""
        order, channel = self.context.order, self.context.channel
        found = pretrained(
            order.inputs[path], name, self.context.store, self.dtype, self.notes, path=path, waiting=channel.going_on
        )
        check_length(found[0], self.stage.max_length)
        return found

    def reward_model(self, path: str, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A model that scores text, and its tokenizer. Raises BadSpec."""
        order, channel = self.context.order, self.context.channel
        return reward_model(
            order.inputs[path], name, self.context.store, self.dtype, self.notes, path=path, waiting=channel.going_on
        )

    def frozen(self, model: nn.Module, deepspeed: DeepSpeed | None = None) -> Frozen:
        """The model as it is asked: whole on this rank, or under ZeRO-3 shared out. `deepspeed` absent: the job's."""
        setting = deepspeed or self.context.order.spec.deepspeed
        return Frozen(model, setting, ranks=self.ranks.world, device=self.device)

    def batches(self, items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, making: Collate) -> list[Batch]:
        """This rank's micro-batches, as many on each rank; the longest come first."""
        pad_id = tokenizer.pad_token_id
        assert isinstance(pad_id, int)  # who loads a tokenizer sees to it
        return micro_batches(
            [[item] for item in items],
            rank=self.ranks.rank,
            world=self.ranks.world,
            micro_batch=self.stage.micro_batch,
            pad_id=pad_id,
            making=making,
        )


def kind_of(source: Input) -> tuple[Path, RowKind]:
    """Where the rows lie, and of which kind they are. Raises BadData, also where they are not what they were."""
    path = local_path(source.location)
    try:
        if ahead.tree_hash(path) != source.sha256:
            said = "is not the file that it was when the job was accepted; submit the job anew"
            raise BadData(f"{source.reference}: {said}")
        with path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                text = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
                if text.strip():
                    return path, parse_line(text, line)[0]
    except OSError as error:
        raise BadData(f"{source.reference}: cannot be read: {error.strerror or error}") from None
    except BadRow as error:
        raise BadData(f"{source.reference}: {error}") from None
    raise BadData(f"{source.reference}: the file has no rows")


def of_texts(exam: Exam, path: Path, kind: RowKind) -> dict[str, float]:
    """`eval/loss`, `eval/perplexity`, and `eval/accuracy`: how often the most probable token is the right one.

    Of dialogues, only the assistant's turns count. Texts longer than `max_length` are read in pieces of that length.
    """
    stage = exam.stage
    model, tokenizer = exam.language_model(MODEL, stage.model)
    common = {"model": stage.model, "data": {"train": stage.data.test, "truncate": stage.data.truncate}}
    if kind == "messages":
        check_template(tokenizer, stage.model)
        read_as: SftStage | PretrainStage = SftStage.model_validate({"type": "sft", **common})
    else:
        read_as = PretrainStage.model_validate({"type": "pretrain", **common})
    try:
        rows = encode(read_rows(path, read_as.traits.rows), tokenizer, read_as, stage.max_length, stage.data.truncate)
    except BadData as error:
        raise BadData(f"{stage.data.test}: {error.message}") from None
    pieces = [piece for row in rows for piece in _pieces(row, stage.max_length)]
    asked = exam.frozen(model)
    found = np.zeros(3)
    for batch in exam.batches(pieces, tokenizer, collate):
        exam.between()
        found += asked.compute(batch, text_sums).double().cpu().numpy()
    sums = exam.ranks.sum(found.tolist())
    if not sums[-1]:
        raise BadData(f"{stage.data.test}: has not one token that could be foreseen")
    return of_sums(sums)


def _pieces(row: Sample, length: int) -> list[Sample]:
    if len(row) <= length:
        return [row]
    return [row.cut(start, start + length) for start in range(0, len(row), length)]


def of_comparisons(exam: Exam, path: Path) -> dict[str, float]:
    """`eval/accuracy`, `eval/calibration`, `eval/loss` and the spread of scores, of a reward model."""
    stage = exam.stage
    model, tokenizer = exam.reward_model(MODEL, stage.model)
    check_length(model, stage.max_length)
    rows = read_comparisons(
        path, stage.data.test, tokenizer, max_length=stage.max_length, truncate=stage.data.truncate, name=stage.model
    )
    asked = exam.frozen(model)
    tally = Tally.empty()
    batches: list[Any] = exam.batches(rows, tokenizer, collate_pairs)
    for batch in batches:
        exam.between()
        tally += Tally.of(asked.compute(batch, scores), batch)
    return Tally(np.array(exam.ranks.sum(tally.sums.tolist()))).metrics()
