"""How far two models' odds are apart, against values worked out by hand and another implementation's."""

import math

import pytest
import torch
from torch import Tensor
from trl.experimental.gkd import GKDTrainer

from worker import divergences
from worker.divergences import Divergence, divergence_sum

# TRL's beta for each: 0 and 1 are its names for the two divergences that its mixture has for limits.
BETAS: dict[Divergence, float] = {"forward": 0.0, "reverse": 1.0, "jsd": 0.3}


def logits(seed: int, positions: int = 7, vocabulary: int = 11) -> Tensor:
    return 3 * torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed))


def test_two_coins_by_hand() -> None:
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2)
    assert divergence_sum(student, teacher, "forward").item() == pytest.approx(forward, abs=1e-6)
    assert divergence_sum(student, teacher, "reverse").item() == pytest.approx(reverse, abs=1e-6)
    middle = [0.625, 0.375]
    jsd = 0.5 * (0.75 * math.log(0.75 / middle[0]) + 0.25 * math.log(0.25 / middle[1]))
    jsd += 0.5 * (0.5 * math.log(0.5 / middle[0]) + 0.5 * math.log(0.5 / middle[1]))
    assert divergence_sum(student, teacher, "jsd", beta=0.5).item() == pytest.approx(jsd, abs=1e-6)


@pytest.mark.parametrize("kind", BETAS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_they_are_trls_and_so_are_their_gradients(
    kind: Divergence, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergences, "_CHUNK", 33)  # three positions at a time
    ours, theirs, teacher = logits(1).requires_grad_(), logits(1).requires_grad_(), logits(2)
    found = divergence_sum(ours, teacher, kind, beta=BETAS[kind], temperature=temperature)
    expected = GKDTrainer.generalized_jsd_loss(
        theirs, teacher, beta=BETAS[kind], temperature=temperature, reduction="sum"
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    expected.backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", BETAS)
def test_of_the_same_odds_nothing_is_left_and_nothing_is_learnt(kind: Divergence) -> None:
    student = logits(3).requires_grad_()
    found = divergence_sum(student, logits(3) + 5.0, kind)
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-5)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


def test_a_vocabulary_that_is_padded_further_is_cut() -> None:
    student, teacher = logits(4), logits(5)
    padded = torch.cat([teacher, torch.full((7, 5), 20.0)], dim=1)
    assert divergence_sum(student, padded, "forward").item() == divergence_sum(student, teacher, "forward").item()


def test_what_a_teacher_rules_out_costs_a_student_no_infinity() -> None:
    teacher = torch.tensor([[0.0, -math.inf]])
    student = torch.tensor([[0.0, 0.0]], requires_grad=True)
    found = divergence_sum(student, teacher, "forward")
    found.backward()
    assert found.item() == pytest.approx(math.log(2))
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
