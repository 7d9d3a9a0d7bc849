"""The terms of a reward that need no model, and what becomes of all of them."""

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from worker.contract.rewards import Reward
from worker.errors import BadData, BadSpec, Diverged
from worker.rl.rewards import Terms, scaled, weighted
from worker.rl.statistics import RunningStatistics

pytestmark = pytest.mark.quick


@dataclass(frozen=True)
class Row:
    answer: str | None = None
    messages: list[dict[str, str]] = field(default_factory=lambda: [{"role": "user", "content": "?"}])


def reward(*terms: dict[str, Any], **more: Any) -> Reward:
    return TypeAdapter(Reward).validate_python({"terms": list(terms), **more})


def score(term: dict[str, Any], answers: list[str], rows: list[Row] | None = None) -> list[float]:
    terms = Terms(reward(term), max_new_tokens=8)
    (found,) = terms.score(rows or [Row()] * len(answers), answers, [len(a.split()) for a in answers]).values()
    return found


def test_friendly_words_have_a_higher_sentiment_than_hostile_ones_and_no_words_have_none() -> None:
    friendly, hostile, none = score({"function": "sentiment"}, ["What a lovely idea!", "I hate this stupid thing.", ""])
    assert -1 <= hostile < 0 == none < friendly <= 1


def test_the_sentiment_of_a_sentence_that_its_authors_give() -> None:
    # From the paper's own examples of the program.
    assert score({"function": "sentiment"}, ["VADER is smart, handsome, and funny."]) == [0.8316]


def test_an_exact_match_leaves_blanks_and_the_case_of_letters_aside_and_nothing_else() -> None:
    rows = [Row("Paris")] * 4
    assert score({"function": "exact_match"}, [" paris\n", "PARIS", "Paris.", ""], rows) == [1, 1, 0, 0]


def test_a_row_without_an_answer_to_compare_with_is_refused_before_anything_is_trained() -> None:
    terms = Terms(reward({"function": "exact_match", "name": "right"}), max_new_tokens=8)
    terms.check([Row("a"), Row("b")])
    with pytest.raises(BadData, match="prompt 2 has no `answer`.*`right`"):
        terms.check([Row("a"), Row(None)])
    with pytest.raises(BadData):
        terms.score([Row(None)], ["a"], [1])
    Terms(reward({"function": "sentiment"}), max_new_tokens=8).check([Row(None)])


def test_length_is_a_share_of_the_limit_or_of_what_the_spec_says() -> None:
    assert score({"function": "length"}, ["a b", "a b c d e f g h"]) == [0.25, 1]
    assert score({"function": "length", "of": 2}, ["a b", "a b c"]) == [1, 1.5]


def test_a_regular_expression_is_found_anywhere_in_an_answer() -> None:
    found = score({"function": "regex", "pattern": r"\d+ ?€|(?i)yes"}, ["it is 12 € now", "YES", "no", "12 $"])
    assert found == [1, 1, 0, 0]


@pytest.mark.parametrize("pattern", ["(", "(?=a)", r"(a)\1"])
def test_a_pattern_that_is_none_for_re2_is_refused_with_its_place_in_the_spec(pattern: str) -> None:
    with pytest.raises(BadSpec, match=r"stage\.reward\.terms\.1\.pattern"):
        Terms(reward({"function": "sentiment"}, {"function": "regex", "pattern": pattern}), max_new_tokens=8)


def test_a_pattern_that_makes_others_backtrack_for_ever_is_done_at_once() -> None:
    assert score({"function": "regex", "pattern": "^(a+)+$"}, ["a" * 50_000 + "b"]) == [0]


def test_each_term_is_told_by_its_own_name_and_models_are_left_to_others() -> None:
    terms = Terms(
        reward({"model": "models/rm"}, {"function": "length"}, {"function": "length", "of": 1, "name": "words"}),
        max_new_tokens=4,
    )
    assert terms.score([Row()], ["a b"], [2]) == {"length": [0.5], "words": [2.0]}


TWO = reward({"model": "models/rm", "weight": 2}, {"function": "length", "weight": -0.5}, missing_eos=-3)
FOUND = {"model": [1.0, -1.0], "length": [0.5, 1.0]}


def test_the_reward_is_the_weighted_sum_and_less_where_the_answer_was_cut_off() -> None:
    assert weighted(TWO, FOUND, [True, False]) == [1.75, -5.5]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_term_that_is_no_number_ends_the_job_and_is_named(bad: float) -> None:
    with pytest.raises(Diverged, match="`model` is .* for answer 2 of 2"):
        weighted(TWO, {**FOUND, "model": [0.0, bad]}, [True, True])


def test_sums_are_clipped_after_they_are_scaled() -> None:
    running = reward({"model": "m"}, scale="running", clip=1.0)
    seen = RunningStatistics()
    seen.update([-4.0, 4.0])  # standard deviation 4
    assert scaled(running, [2.0, -8.0, 100.0], seen) == [0.5, -1, 1]
    assert scaled(reward({"model": "m"}, clip=1.0), [0.5, -8.0], seen) == [0.5, -1]


def learnt(spec: Reward, *iterations: list[float]) -> list[float]:
    """What the last iteration's answers are learnt from, by a reward with one term."""
    seen, found = RunningStatistics(), []
    for values in iterations:
        sums = weighted(spec, {"model": values}, [True] * len(values))
        seen.update(sums)
        found = scaled(spec, sums, seen)
    return found


def test_the_scale_is_the_standard_deviation_of_all_sums_so_far() -> None:
    found = learnt(reward({"model": "m"}, scale="running"), [1.0, 2.0], [5.0, 9.0])
    assert found == pytest.approx([value / statistics.pstdev([1, 2, 5, 9]) for value in (5, 9)])


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [0.1 + 0.2, 0.3]])
def test_sums_that_do_not_vary_are_left_as_they_are(values: list[float]) -> None:
    assert learnt(reward({"model": "m"}, scale="running"), values) == values


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0.1, 10))
def test_what_is_learnt_from_lies_within_the_clip_and_keeps_its_order(values: list[float], clip: float) -> None:
    found = learnt(reward({"model": "m"}, scale="running", clip=clip), values)
    assert all(-clip <= value <= clip for value in found)
    ranked = [value for _, value in sorted(zip(values, found, strict=True))]
    assert ranked == sorted(ranked)


@pytest.mark.parametrize("url", ["http://localhost:99999/", "ftp://x/", "http://me@x/", "http:///x"])
def test_a_service_needs_an_address_that_there_can_be(url: str) -> None:
    with pytest.raises(ValidationError, match="service"):
        reward({"service": url})
