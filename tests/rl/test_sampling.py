"""Tokens are drawn by the probabilities alone, by a random number a row."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.rl.sampling import Sampling, next_tokens, uniforms


def drawn(logits: list[list[float]], uniform: list[float], **how: float) -> list[int]:
    return next_tokens(torch.tensor(logits), torch.tensor(uniform, dtype=torch.float64), Sampling(**how)).tolist()


def test_each_token_has_its_own_part_of_the_unit_interval() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3]).log().tolist()
    places = [0.0, 0.19, 0.21, 0.69, 0.71, 0.999999]
    assert drawn([logits] * len(places), places) == [0, 0, 1, 1, 2, 2]


def test_tokens_that_cannot_be_are_never_drawn() -> None:
    never = float("-inf")
    edges = [0.0, 0.5, 1 - 2**-53]
    assert drawn([[never, 0.0, never, 0.0, never]] * 3, edges) == [1, 3, 3]


def test_a_nucleus_is_the_fewest_likeliest_tokens_that_together_have_top_p() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().tolist()
    many = [n / 100 for n in range(100)]
    assert set(drawn([logits] * 100, many, top_p=0.65)) == {1, 3}
    assert set(drawn([logits] * 100, many, top_p=0.75)) == {1, 2, 3}
    assert set(drawn([logits] * 100, many, top_p=0.01)) == {1}
    # Within it, by their probabilities: 4 to 3.
    assert drawn([logits] * 100, many, top_p=0.65).count(1) in (57, 58)


def test_barred_tokens_are_not_drawn_however_likely() -> None:
    logits = torch.tensor([[9.0, 0.0], [9.0, 0.0]])
    barred = torch.tensor([[True, False], [False, False]])
    uniform = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for greedy in (False, True):
        assert next_tokens(logits, uniform, Sampling(greedy=greedy), barred).tolist() == [1, 0]


@given(st.integers(0, 2**63 - 1), st.integers(1, 50), st.integers(1, 50))
def test_an_answer_s_random_numbers_depend_on_its_seed_and_not_on_how_many_it_may_need(
    seed: int, few: int, more: int
) -> None:
    count = min(few, more)
    assert torch.equal(uniforms(seed, few)[:count], uniforms(seed, more)[:count])
