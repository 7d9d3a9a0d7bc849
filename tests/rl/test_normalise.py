"""The mean of the reference answers' scores becomes 0, and nothing else changes."""

import numpy as np
import pytest
import torch

from worker.normalise import RIDGE, Seen, normalised
from worker.pairs import collate_pairs, compared

SIZE = 24


def every(head: torch.Tensor, rows: int, *, noise: float = 0.3, common: float = 1.0, seed: int = 0) -> list[Seen]:
    """Hidden states as at the end of turns: a part that all have, and one of each its own."""
    rng = np.random.default_rng(seed)
    direction = np.random.default_rng(99).normal(size=SIZE) * common
    found = []
    for _ in range(rows):
        hidden = (direction + noise * rng.normal(size=(3, SIZE))).astype(np.float32)
        batch = collate_pairs([[compared([[1], [2], [3]], [0, 2, 1])]], pad_id=0)
        found.append(Seen(batch, hidden, (hidden @ head.float().numpy()[0]).astype(np.float32)))
    return found


def head(seed: int = 5, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(1, SIZE, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("rows", [4, 100])  # of 3 answers each: fewer than the size, and more
def test_the_deviation_is_that_of_answers_left_out(rows: int) -> None:
    hidden = np.concatenate([one.hidden for one in every(head(), rows)]).astype(np.float64)
    _, done = normalised(head(), every(head(), rows), "some")
    ridge = RIDGE * np.square(hidden).mean() * len(hidden) * np.eye(SIZE)
    left_out = []
    for number in range(len(hidden)):
        others = np.delete(hidden, number, axis=0)
        left_out.append(hidden[number] @ np.linalg.solve(others.T @ others + ridge, others.sum(axis=0)))
    assert done.largest_deviation == pytest.approx(np.abs(1 - np.array(left_out)).max(), rel=1e-6)


@pytest.mark.parametrize("rows", [2, 5, 100])
def test_the_mean_over_the_best_answers_is_zero(rows: int) -> None:
    before = head()
    seen = every(before, rows)
    after, done = normalised(before, seen, "some")
    best = np.stack([one.hidden[1] for one in seen])
    assert (best @ after.numpy()[0]).mean() == pytest.approx(0, abs=1e-5)
    assert done.mean == pytest.approx(0, abs=1e-5)
    assert done.mean_before == pytest.approx((best @ before.numpy()[0]).mean(), abs=1e-5)
    assert done.answers == rows


def test_answers_that_were_not_looked_at_move_by_the_same_amount() -> None:
    before = head()
    after, done = normalised(before, every(before, 200), "some")
    others = np.concatenate([one.hidden for one in every(before, 50, seed=1)])
    moved = others @ (before - after).numpy()[0]
    assert moved == pytest.approx(np.full(len(moved), done.mean_before), abs=0.25 * abs(done.mean_before))
    assert 0 < done.largest_deviation < 0.25


def test_where_the_common_part_is_exact_nothing_but_the_mean_changes() -> None:
    before = head()
    seen = [
        Seen(
            one.batch, hidden := np.hstack([one.hidden[:, 1:], np.ones((3, 1), np.float32)]), hidden @ before.numpy()[0]
        )
        for one in every(before, 60)
    ]
    after, done = normalised(before, seen, "some")
    moved = np.concatenate([one.hidden for one in seen]) @ (before - after).numpy()[0]
    assert moved == pytest.approx(np.full(len(moved), done.mean_before), abs=3e-2 * abs(done.mean_before))
    assert done.accuracy == pytest.approx(done.accuracy_before, abs=0.03)
    assert done.largest_deviation < 3e-2


def test_a_head_in_bf16_stays_so_and_tells_the_mean_that_rounding_leaves() -> None:
    before = head(dtype=torch.bfloat16)
    seen = every(before, 50)
    after, done = normalised(before, seen, "some")
    assert after.dtype == torch.bfloat16
    best = np.stack([one.hidden[1] for one in seen])
    assert done.mean == pytest.approx((best @ after.float().numpy()[0]).mean(), abs=1e-5)
    assert abs(done.mean) < 0.02


def test_without_a_common_direction_nothing_is_done() -> None:
    before = head()
    with pytest.raises(ValueError, match="no direction in common"):
        normalised(before, every(before, 400, noise=1.0, common=0.0), "some")


def test_it_says_what_it_did() -> None:
    before = head()
    _, done = normalised(before, every(before, 20), "the best answers of held-out rows")
    assert "The 20 reference answers (the best answers of held-out rows) had a mean score of" in done.sentence()
    assert set(done.config()) >= {"mean_before", "mean", "of", "answers", "largest_deviation"}
