"""Odds ratio preference optimization (Hong et al., 2024): fine-tuning and preference in one, without a reference.

Of a row, with means over an answer's tokens: -log p(better) - beta log sigmoid(log odds(better) - log odds(worse)).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from worker.context import Context
from worker.contract.order import Input
from worker.contract.preference import OrpoStage
from worker.contract.protocol import Output
from worker.dataset import Dataset
from worker.distributed import Ranks
from worker.engine import Engine
from worker.method import Method
from worker.models import Loaded, without_dropout
from worker.pairs import Comparison
from worker.preference.losses import log_odds, odds_ratio
from worker.preference.pairs import Preference, PreferenceBatch, collate_preferences, load_preferences, numbered, told
from worker.preference.points import PAIR_SUMS, evaluated, of_pairs, pair_sums
from worker.training import train


def run(context: Context) -> list[Output]:
    """Trains the spec's model on its comparisons. Gives the outputs on rank 0. Raises WorkerFailure."""
    stage = context.order.spec.stage
    assert isinstance(stage, OrpoStage)
    return train(context, Orpo(stage))


class Orpo(Method[OrpoStage]):
    """Comparisons, their better answers' likelihood and both answers' odds."""

    def check(self, loaded: Loaded) -> None:
        """Both answers are judged by one network, not each by its own share of it."""
        without_dropout(loaded.model)

    def read(self, source: Input, tokenizer: PreTrainedTokenizerBase) -> Sequence[Comparison]:
        """The comparisons of a file."""
        return load_preferences(source, self.stage, tokenizer)

    def prepare(self, dataset: Dataset) -> Dataset:
        """Numbers all answers."""
        return numbered(dataset)[0]

    def collate(self, rows: Sequence[Sequence[Preference]], *, pad_id: int) -> PreferenceBatch:
        """Every answer a row."""
        return collate_preferences(rows, pad_id=pad_id, prompts=self.stage.prompts)

    def objective(self, model: nn.Module, batch: PreferenceBatch) -> Tensor:
        """[PAIR_SUMS], and the sums of the likelihood's loss and of the logarithm of the odds ratio."""
        beta, said = self.stage.beta, told(model, batch)
        better, worse = said.means[batch.better], said.means[batch.worse]
        nats = -(said.everything / said.labelled)[batch.better]
        losses = nats + beta * odds_ratio(better, worse)
        sums = pair_sums(losses, beta * said.means, said.answers, batch)
        odds = log_odds(better, worse)
        more = [(one.detach() * batch.weights).sum() for one in (nats, odds)]
        return torch.cat([sums, torch.stack(more)])

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Rewards, their margin, accuracy, log-probabilities, the likelihood's loss and the odds."""
        return _points(sums, "")

    def evaluate(
        self, engine: Engine, batches: list[Any], ranks: Ranks, between: Callable[[], None]
    ) -> dict[str, float]:
        """The same on held-out rows, and the loss."""
        sums = evaluated(engine, batches, ranks, between)
        return {"eval/loss": sums[0] / max(1.0, sums[1])} | _points(sums, "eval/")


def _points(sums: list[float], where: str) -> dict[str, float]:
    rows = max(1.0, sums[1])
    nats, odds = sums[len(PAIR_SUMS) :]
    return of_pairs(sums, where) | {f"{where}orpo/nll": nats / rows, f"{where}orpo/log_odds": odds / rows}
