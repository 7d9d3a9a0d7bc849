"""Kahneman-Tversky optimization (Ethayarajh et al., 2024): from single answers, each one to give or not to give.

With s = log pi(y|x) - log ref(y|x), an answer's loss is weight (1 - sigmoid(beta (s - z))), and with z - s for one not
to give. z is how far the model has moved from the reference, and has no gradient: the mean of s over the mismatched
pairs of an update on all ranks, at least 0 (`worker/preference/judged.py`). At the beginning all losses are weight / 2.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from worker.context import Context
from worker.contract.order import Input
from worker.contract.preference import KtoStage
from worker.contract.protocol import Output
from worker.dataset import Dataset
from worker.distributed import Ranks
from worker.engine import Engine
from worker.feed import Update
from worker.logprobs import log_probabilities
from worker.method import Loop, Method
from worker.models import Loaded, without_dropout
from worker.preference.judged import (
    JudgedBatch,
    Judgement,
    check_labels,
    collate_judgements,
    load_judgements,
    partnered,
)
from worker.preference.losses import prospect
from worker.preference.points import evaluated, judged_sums, of_judged
from worker.preference.reference import Reference
from worker.rl.objectives import AnswerBatch
from worker.state import undisturbed
from worker.training import train


def run(context: Context) -> list[Output]:
    """Trains the spec's model on its judged answers. Gives the outputs on rank 0. Raises WorkerFailure."""
    stage = context.order.spec.stage
    assert isinstance(stage, KtoStage)
    return train(context, Kto(stage))


class Kto(Method[KtoStage]):
    """Judged answers, and how far the model has moved."""

    def __init__(self, stage: KtoStage):
        super().__init__(stage)
        self._kl = 0.0
        self._reference = Reference(0)  # of as many answers as `prepare` finds

    def check(self, loaded: Loaded) -> None:
        """What is compared is one network, now and as it began: noise in it would be taken for learning."""
        without_dropout(loaded.model)

    def read(self, source: Input, tokenizer: PreTrainedTokenizerBase) -> Sequence[Judgement]:
        """The judged answers of a file."""
        return load_judgements(source, self.stage, tokenizer)

    def prepare(self, dataset: Dataset) -> Dataset:
        """Gives each row its partner and its number. Raises BadData where there is one label, or one prompt alone."""
        seed, limit = self.stage.seed, self.stage.max_length
        rows: Any = dataset.train
        check_labels(rows, "stage.data.train")
        train_ = partnered(rows, "stage.data.train", seed=seed, max_length=limit, first=0)
        rows = dataset.held_out
        rest = partnered(rows, "evaluate", seed=seed, max_length=limit, first=len(train_))
        self._reference = Reference(2 * (len(train_) + len(rest)))
        return replace(dataset, train=train_, held_out=rest)

    def collate(self, rows: Sequence[Sequence[Judgement]], *, pad_id: int) -> JudgedBatch:
        """Answers, and mismatched pairs beside them."""
        return collate_judgements(rows, pad_id=pad_id)

    def begin(self, loop: Loop) -> None:
        """Asks the model as it begins, also of the mismatched pairs."""

        def both(model: nn.Module, batch: JudgedBatch) -> Tensor:
            return torch.cat([_logprobs(model, batch.said), _logprobs(model, batch.other)])

        self._reference.ask(loop, both, lambda batch: torch.cat([2 * batch.numbers, 2 * batch.numbers + 1]))

    def state(self) -> dict[str, Any]:
        """The reference's log-probabilities."""
        return self._reference.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on with them."""
        self._reference.load_state(state)

    def before_update(self, loop: Loop, update: Update, step: int) -> Update:
        """Tells how far the model has moved, over the whole update."""
        self._kl = self._moved(loop.engine, update.micro_batches, loop.ranks, loop.between)
        return update

    def objective(self, model: nn.Module, batch: JudgedBatch) -> Tensor:
        """[JUDGED_SUMS]."""
        stage, logprobs = self.stage, _logprobs(model, batch.said)
        scores = logprobs - self._reference.of(2 * batch.numbers)
        losses = prospect(
            scores,
            batch.wanted,
            self._kl,
            beta=stage.beta,
            desirable=stage.desirable_weight,
            undesirable=stage.undesirable_weight,
        )
        return judged_sums(losses, stage.beta * scores, stage.beta * self._kl, logprobs, batch)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Rewards, their margin, accuracy, log-probabilities and the divergence."""
        return of_judged(sums, "") | {"kto/kl": self._kl}

    def evaluate(
        self, engine: Engine, batches: list[Any], ranks: Ranks, between: Callable[[], None]
    ) -> dict[str, float]:
        """The same on held-out rows, from their own mismatched pairs, and the loss."""
        before = self._kl
        try:
            self._kl = kl = self._moved(engine, batches, ranks, between)
            sums = evaluated(engine, batches, ranks, between)
        finally:
            self._kl = before
        return {"eval/loss": sums[0] / max(1.0, sums[1] + sums[2]), "eval/kto/kl": kl} | of_judged(sums, "eval/")

    def _moved(self, engine: Engine, batches: Iterable[Any], ranks: Ranks, between: Callable[[], None]) -> float:
        """z: nats an answer, over the mismatched pairs of all ranks' batches."""

        def moved(model: nn.Module, batch: JudgedBatch) -> Tensor:
            scores = _logprobs(model, batch.other) - self._reference.of(2 * batch.numbers + 1)
            return torch.stack([(scores * batch.weights).sum(), batch.weights.sum()])

        parts = []
        with undisturbed():
            for batch in batches:
                between()
                parts.append(engine.eval_micro(batch, moved).double().cpu())
        total, count = ranks.sum(torch.stack(parts).sum(dim=0).tolist())
        return max(0.0, total / max(1.0, count))


def _logprobs(model: nn.Module, answers: AnswerBatch) -> Tensor:
    """Of each row's answer, in nats."""
    return log_probabilities(model, answers).sum(dim=1)
