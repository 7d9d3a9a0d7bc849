"""Advantages, returns and whitening: against the sums that define them, whatever surrounds an answer."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.rl.advantages import explained_variance, gae, token_rewards, whiten

FINE = torch.tensor([[True, True, True]])


def test_advantages_and_returns_of_an_answer_worked_out_by_hand() -> None:
    rewards, values = torch.tensor([[0.0, 0, 1]]), torch.tensor([[0.5, 0.6, 0.7]])
    advantages, returns = gae(rewards, values, FINE, 1.0, 0.95)
    torch.testing.assert_close(advantages, torch.tensor([[0.46575, 0.385, 0.3]]), rtol=0, atol=1e-6)
    torch.testing.assert_close(returns, torch.tensor([[0.96575, 0.985, 1.0]]), rtol=0, atol=1e-6)


def test_the_score_comes_at_the_last_token_and_every_token_pays_for_its_kl() -> None:
    mask = torch.tensor([[False, True, True, False], [True, True, True, True], [False, False, True, False]])
    kl = torch.tensor([[9.0, 0.5, -0.25, 9], [0.1, 0.2, 0.3, 0.4], [9, 9, 2, 9]])
    found = token_rewards(torch.tensor([1.0, -2, 3]), kl, 0.1, mask)
    wanted = torch.tensor([[0, -0.05, 1.025, 0], [-0.01, -0.02, -0.03, -2.04], [0, 0, 2.8, 0]])
    torch.testing.assert_close(found, wanted)


def test_a_row_without_a_token_has_no_reward() -> None:
    empty = torch.zeros(1, 3, dtype=torch.bool)
    assert not token_rewards(torch.tensor([5.0]), torch.ones(1, 3), 0.1, empty).any()
    assert not any(part.any() for part in gae(torch.ones(1, 3), torch.ones(1, 3), empty, 1.0, 0.9))


def sums(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Advantages by their definition: discounted sums of the errors to come, one by one."""
    after = [*values[1:], 0.0]
    errors = [r + gamma * nxt - v for r, v, nxt in zip(rewards, values, after, strict=True)]
    return [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, len(errors))) for t in range(len(errors))]


numbers = st.floats(-1, 1, width=32)
answers = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), answers), min_size=1, max_size=4),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.95, 1.0]),
)
def test_advantages_are_the_discounted_sums_of_errors_whatever_stands_around_an_answer(
    rows: list[tuple[int, list[tuple[float, float]]]], gamma: float, lam: float
) -> None:
    time = max(start + len(answer) for start, answer in rows) + 2
    rewards, values = torch.full((len(rows), time), float("nan")), torch.full((len(rows), time), float("nan"))
    mask = torch.zeros(len(rows), time, dtype=torch.bool)
    for number, (start, answer) in enumerate(rows):
        span = slice(start, start + len(answer))
        rewards[number, span], values[number, span] = torch.tensor(answer).T
        mask[number, span] = True
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    assert not advantages[~mask].any() and not returns[~mask].any()
    for number, (start, answer) in enumerate(rows):
        span = slice(start, start + len(answer))
        wanted = sums([r for r, _ in answer], [v for _, v in answer], gamma, lam)
        np.testing.assert_allclose(advantages[number, span], wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(returns[number, span] - values[number, span], wanted, rtol=1e-5, atol=1e-5)


def test_with_lambda_one_the_returns_are_the_rewards_to_come() -> None:
    rewards, values = torch.randn(3, 7), torch.randn(3, 7)
    _, returns = gae(rewards, values, torch.ones(3, 7, dtype=torch.bool), 1.0, 1.0)
    torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1), rtol=1e-5, atol=1e-5)


def some(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(6, 9, generator=generator) < 0.6
    return torch.randn(6, 9, generator=generator) * 3 + 5, mask


def test_whitened_advantages_have_mean_0_and_standard_deviation_1_over_real_tokens_alone() -> None:
    x, mask = some()
    white = whiten(x, mask)
    assert float(white[mask].mean()) == pytest.approx(0, abs=1e-6)
    assert float(white[mask].std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert not white[~mask].any()


def test_what_stands_in_the_padding_changes_nothing_when_whitening() -> None:
    x, mask = some()
    torch.testing.assert_close(whiten(torch.where(mask, x, torch.nan), mask), whiten(x, mask), rtol=0, atol=0)


def test_whitening_does_not_see_scale_and_shift_and_keeps_the_order() -> None:
    x, mask = some()
    torch.testing.assert_close(whiten(4 * x - 7, mask), whiten(x, mask), rtol=1e-5, atol=1e-5)
    assert torch.equal(whiten(x, mask)[mask].argsort(), x[mask].argsort())


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_what_does_not_vary_is_whitened_to_zero(tokens: int) -> None:
    mask = (torch.arange(8) < tokens)[None]
    assert not whiten(torch.full((1, 8), 3.0), mask).any()


def test_explained_variance_is_1_for_a_perfect_critic_and_0_for_one_that_knows_only_the_mean() -> None:
    returns, mask = some()
    assert explained_variance(returns, returns, mask) == pytest.approx(1)
    assert explained_variance(returns, returns - 2, mask) == pytest.approx(1)
    assert explained_variance(returns, torch.full_like(returns, 4.0), mask) == pytest.approx(0, abs=1e-6)
    assert explained_variance(returns, -returns, mask) < 0
    assert np.isnan(explained_variance(torch.ones(1, 3), torch.ones(1, 3), FINE))
