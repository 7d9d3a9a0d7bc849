"""The losses of preferences by hand, and as functions: what no model has a part in."""

import math

import pytest
import torch
from torch import Tensor

from worker.preference.losses import log_odds, odds_ratio, pairwise, prospect


def pair(margin: float, asked: float = 0.0, **settings: object) -> float:
    """The loss of one pair whose scores differ by `margin`."""
    told: dict[str, object] = {"loss": "sigmoid", "beta": 0.1} | settings
    scores = torch.tensor([margin - 3.0]), torch.tensor([-3.0])
    return float(pairwise(*scores, torch.tensor([asked]), **told))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("margin", "settings", "loss"),
    [
        (2.0, {}, 0.598139),  # log(1 + e^-.2)
        (0.0, {}, math.log(2)),
        (-2.0, {}, 0.798139),  # log(1 + e^.2)
        (2.0, {"label_smoothing": 0.25}, 0.598139 * 0.75 + 0.798139 * 0.25),
        (2.0, {"asked": 0.2}, math.log(2)),  # the margin of .2 that was asked for is just there
        (2.0, {"loss": "hinge"}, 0.8),
        (12.0, {"loss": "hinge"}, 0.0),
        (2.0, {"loss": "ipo"}, 9.0),  # (2 - 1 / .2)^2
        (2.0, {"loss": "ipo", "beta": 0.25}, 0.0),
    ],
)
def test_a_pair_by_hand(margin: float, settings: dict[str, object], loss: float) -> None:
    assert pair(margin, **settings) == pytest.approx(loss, abs=1e-6)  # type: ignore[arg-type]


def test_odds_by_hand() -> None:
    # Probabilities of .5 and .2 a token have the odds 1 and 1/4.
    better, worse = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.2)])
    assert float(log_odds(better, worse)) == pytest.approx(math.log(4), abs=1e-6)
    assert float(odds_ratio(better, worse)) == pytest.approx(math.log(1.25), abs=1e-6)


def test_an_answer_that_is_certain_has_finite_odds_and_a_finite_gradient() -> None:
    better = torch.tensor([0.0, -1e-9, -0.7, -80.0], requires_grad=True)
    losses = odds_ratio(better, torch.tensor([-2.0, 0.0, -0.69, -81.0]))
    losses.sum().backward()
    assert better.grad is not None
    assert losses.isfinite().all()
    assert better.grad.isfinite().all()


def test_single_answers_by_hand() -> None:
    scores, wanted = torch.tensor([3.0, 3.0, 1.0]), torch.tensor([True, False, False])
    found = prospect(scores, wanted, 1.0, beta=0.5, desirable=1.0, undesirable=2.0)
    up = 1 / (1 + math.exp(-1.0))
    assert found.tolist() == pytest.approx([1 - up, 2 * up, 2 * 0.5], abs=1e-6)


def slope(function: object, at: Tensor, width: float = 1e-4) -> Tensor:
    """The gradient of a sum of losses, by differences."""
    found = torch.zeros_like(at)
    for index in range(len(at)):
        off = torch.zeros_like(at)
        off[index] = width
        found[index] = (function(at + off) - function(at - off)).sum() / (2 * width)  # type: ignore[operator]
    return found


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "odds", "kto"])
def test_gradients_are_those_of_differences(loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    worse, margins = (torch.rand(6, generator=generator, dtype=torch.float64) for _ in range(2))
    wanted = torch.tensor([True, False] * 3)

    def losses(scores: Tensor) -> Tensor:
        if loss == "odds":
            return odds_ratio(-0.1 - scores, -0.1 - worse)
        if loss == "kto":
            return prospect(scores, wanted, 0.4, beta=0.7, desirable=1.0, undesirable=1.5)
        return pairwise(scores, worse, margins, loss=loss, beta=0.7, label_smoothing=0.1)  # type: ignore[arg-type]

    scores = 3 * torch.rand(6, generator=generator, dtype=torch.float64)
    asked = scores.clone().requires_grad_()
    losses(asked).sum().backward()
    torch.testing.assert_close(asked.grad, slope(losses, scores), rtol=1e-5, atol=1e-7)
