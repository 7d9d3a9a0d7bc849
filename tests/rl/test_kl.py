"""Estimates of the KL, and its price: by hand, and against the KL of whole distributions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.contract.ppo import Kl
from worker.rl.kl import AdaptiveKl, k1, k2, k3


def test_the_estimates_of_a_log_ratio_of_one_half() -> None:
    half = torch.tensor(0.5)
    assert [float(k(half)) for k in (k1, k2, k3)] == pytest.approx([0.5, 0.125, 0.106531], abs=1e-6)


def test_the_mean_of_k1_and_of_k3_is_the_kl_of_the_distributions() -> None:
    generator = torch.Generator().manual_seed(3)
    p, q = (torch.randn(7, generator=generator, dtype=torch.float64).softmax(0) for _ in range(2))
    log_ratio = p.log() - q.log()
    kl = float((p * log_ratio).sum())
    assert float((p * k1(log_ratio)).sum()) == pytest.approx(kl)
    assert float((p * k3(log_ratio)).sum()) == pytest.approx(kl)


@given(st.floats(-15, 15))
def test_k2_and_k3_are_never_negative_and_zero_only_where_nothing_differs(log_ratio: float) -> None:
    x = torch.tensor(log_ratio, dtype=torch.float64)
    assert float(k2(x)) >= 0
    assert float(k3(x)) >= 0
    assert float(k3(torch.zeros(()))) == 0


def test_k3_of_a_tiny_log_ratio_is_not_lost_in_rounding() -> None:
    assert float(k3(torch.tensor(0.0625))) == pytest.approx(math.exp(-0.0625) - 1 + 0.0625, rel=1e-4)


def test_the_price_rises_as_ziegler_has_it() -> None:
    assert AdaptiveKl(0.2, 6.0, 10_000).update(9.0, 256) == pytest.approx(0.201024, abs=1e-9)


@pytest.mark.parametrize(("kl", "factor"), [(0.0, 0.9), (5.4, 0.95), (6.0, 1.0), (6.3, 1.025), (1e9, 1.1)])
def test_the_error_counts_up_to_a_fifth_either_way(kl: float, factor: float) -> None:
    assert AdaptiveKl(0.2, 6.0, 1000).update(kl, 500) == pytest.approx(0.2 * factor)


def test_the_price_of_very_many_answers_is_never_negative() -> None:
    assert AdaptiveKl(0.2, 6.0, 10).update(0.0, 10_000) == 0


def test_without_a_target_the_price_stays() -> None:
    fixed = AdaptiveKl.of(Kl(coef=0.07))
    assert fixed.update(1e6, 64) == 0.07


def test_a_price_that_was_put_back_goes_on_as_the_old_one() -> None:
    one = AdaptiveKl.of(Kl(coef=0.1, target=6.0))
    one.update(8.0, 64)
    other = AdaptiveKl.of(Kl(coef=0.1, target=6.0))
    other.load(one.state())
    assert other.update(3.0, 64) == one.update(3.0, 64)
