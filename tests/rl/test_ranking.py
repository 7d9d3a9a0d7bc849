"""The loss of a reward model, against TRL's trainer and by hand; accuracy and calibration, by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trl import RewardConfig, RewardTrainer

from tests.model.conftest import GPT2, LLAMA, QWEN2
from tests.rl.comparisons import pairs, read, scalar
from worker.pairs import Comparison, PairBatch, collate_pairs, compared
from worker.ranking import BINS, Tally, pair_sums, ranking
from worker.scores import scores


def batch_of(*rows: Comparison) -> PairBatch:
    return collate_pairs([[row] for row in rows], pad_id=0)


TWO = compared([[1], [2]], [1, 0])


def test_a_head_of_zeros_has_the_loss_of_a_coin(tmp_path: Path) -> None:
    loaded = scalar(LLAMA, tmp_path, learnt=False)
    rows = read(tmp_path, [row for row in pairs(6) if "margin" not in row], loaded.tokenizer)
    loss, correct, count = ranking(0.01)(loaded.model, batch_of(*rows)).tolist()
    assert loss / len(rows) == pytest.approx(math.log(2), abs=1e-7)
    assert correct == count / 2


@pytest.mark.parametrize(
    ("chosen", "rejected", "margin", "center", "loss"),
    [
        (2.0, 0.0, 0.0, 0.0, 0.126928),  # log(1 + e^-2)
        (2.0, 0.0, 1.0, 0.0, 0.313262),  # log(1 + e^-1)
        (1.0, 2.0, 0.0, 0.1, 1.313262 + 0.9),  # log(1 + e) and .1 x 3^2
    ],
)
def test_a_pair_by_hand(chosen: float, rejected: float, margin: float, center: float, loss: float) -> None:
    row = compared([[1], [2]], [1, 0], margin=margin)
    found = pair_sums(torch.tensor([chosen, rejected]), batch_of(row), center)
    assert found.tolist() == pytest.approx([loss, float(chosen > rejected), 1.0], abs=1e-6)


def test_the_pairs_of_a_row_weigh_as_much_as_one_row() -> None:
    three = compared([[1], [2], [3]], [2, 1, 0])
    found = torch.tensor([1.0, 0.5, -1.0, 2.0, 0.0])
    loss, correct, count = pair_sums(found, batch_of(three, TWO), 0.0).tolist()
    by_hand = sum(math.log1p(math.exp(-gap)) for gap in (0.5, 2.0, 1.5)) / 3 + math.log1p(math.exp(-2.0))
    assert loss == pytest.approx(by_hand, abs=1e-6)
    assert (correct, count) == (4.0, 4.0)


@pytest.mark.parametrize("config", [LLAMA, GPT2, QWEN2], ids=lambda c: c["model_type"])
@pytest.mark.parametrize("margin", [None, 0.7])
def test_loss_and_gradient_are_those_of_trl(tmp_path: Path, config: dict[str, Any], margin: float | None) -> None:
    loaded = scalar(config, tmp_path)
    more = {} if margin is None else {"margin": margin}
    rows = [{"prompt": "hi", "chosen": "yes " * n, "rejected": "never" * (5 - n), **more} for n in range(1, 5)]
    comparisons = read(tmp_path, rows, loaded.tokenizer)
    ours = ranking(0.05)(loaded.model, batch_of(*comparisons))[0] / len(rows)
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in loaded.model.named_parameters() if p.grad is not None}
    loaded.model.zero_grad()
    data = [
        {"chosen_ids": row.answers[0].tolist(), "rejected_ids": row.answers[1].tolist(), **more} for row in comparisons
    ]
    theirs, model = loss_of_trl(loaded.model, loaded.tokenizer, data, tmp_path)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    theirs.backward()
    theirs_by_name = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert theirs_by_name.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs_by_name[name], rtol=1e-4, atol=1e-5)


def loss_of_trl(model: Any, tokenizer: Any, data: list[dict[str, Any]], folder: Path) -> tuple[Tensor, Any]:
    settings = RewardConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=len(data),
        center_rewards_coefficient=0.05,
        max_length=None,
        bf16=False,
        gradient_checkpointing=False,
        disable_dropout=True,
        report_to="none",
        use_cpu=True,
    )
    trainer = RewardTrainer(
        model=model, args=settings, train_dataset=Dataset.from_list(data), processing_class=tokenizer
    )
    batch = trainer.data_collator(data)
    return trainer.compute_loss(trainer.model, batch), trainer.model


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda c: c["model_type"])
def test_neither_padding_nor_the_rows_beside_it_change_a_score(tmp_path: Path, config: dict[str, Any]) -> None:
    loaded = scalar(config, tmp_path, max_length=128)
    rows = read(tmp_path, pairs(6), loaded.tokenizer)
    with torch.no_grad():
        together = scores(loaded.model, batch_of(*rows))
        alone = torch.cat([scores(loaded.model, batch_of(row)) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_a_batch_without_rows_adds_nothing_and_reaches_every_weight(tmp_path: Path) -> None:
    loaded = scalar(LLAMA, tmp_path)
    sums = ranking(0.01)(loaded.model, batch_of())
    assert sums.tolist() == [0.0, 0.0, 0.0]
    sums[0].backward()
    # Other ranks wait for gradients of all: there must be some, of zero.
    assert all(p.grad is not None and not p.grad.any() for p in loaded.model.parameters())


def test_what_is_measured_by_hand() -> None:
    # Odds of .5 (a tie), .73 (wrong) and .88 (right), and a row of three answers.
    batch = batch_of(TWO, TWO, TWO)
    tally = Tally.of(torch.tensor([1.0, 1.0, 0.0, 1.0, 2.0, 0.0]), batch)
    found = tally.metrics()
    one, two = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    assert found["eval/accuracy"] == pytest.approx(1.5 / 3)
    assert found["eval/calibration"] == pytest.approx((0.0 + one + (1 - two)) / 3)
    assert found["eval/score_mean"] == pytest.approx(1.0)
    assert found["eval/score_std"] == pytest.approx(np.std([1, 1, 0, 1, 2, 0]))
    assert found["eval/loss"] == pytest.approx((math.log(2) - math.log(1 - one) - math.log(two)) / 3)


def test_scores_whose_odds_are_true_are_calibrated_and_bolder_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    gaps = rng.normal(0, 1.5, 20_000)
    right = rng.random(20_000) < 1 / (1 + np.exp(-np.abs(gaps)))
    told = np.where(right, np.abs(gaps), -np.abs(gaps))  # of the better answer over the worse

    def error(boldness: float) -> float:
        found = torch.tensor(np.stack([told * boldness, np.zeros_like(told)], axis=1).ravel())
        every = [
            Tally.of(found[2 * start : 2 * start + 2000], batch_of(*[TWO] * 1000)) for start in range(0, 20_000, 1000)
        ]
        return sum(every, Tally.empty()).calibration_error

    assert error(1.0) < 0.015
    assert error(3.0) > 0.1
    assert error(0.1) > 0.1


def test_tallies_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(2 * BINS, generator=generator)
    halves = [
        Tally.of(found[:BINS], batch_of(*[TWO] * (BINS // 2))),
        Tally.of(found[BINS:], batch_of(*[TWO] * (BINS // 2))),
    ]
    whole = Tally.of(found, batch_of(*[TWO] * BINS))
    assert (halves[0] + halves[1]).metrics() == pytest.approx(whole.metrics())
