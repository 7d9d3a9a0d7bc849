"""Running mean and variance: as of all numbers at once, however they came."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.rl.statistics import RunningStatistics

pytestmark = pytest.mark.quick
batches = st.lists(st.lists(st.floats(-1e3, 1e3), max_size=5), max_size=6)


def of(parts: list[list[float]]) -> RunningStatistics:
    made = RunningStatistics()
    for part in parts:
        made.update(part)
    return made


@given(batches)
def test_numbers_in_parts_have_the_mean_and_variance_of_all_at_once(parts: list[list[float]]) -> None:
    every = [number for part in parts for number in part]
    found = of(parts)
    assert found.count == len(every)
    if every:
        assert found.mean == pytest.approx(statistics.fmean(every), rel=1e-9, abs=1e-9)
        assert found.variance == pytest.approx(statistics.pvariance(every), rel=1e-9, abs=1e-6)


def test_small_differences_far_from_zero_are_not_lost() -> None:
    assert of([[1e9 + 1], [1e9 + 2, 1e9 + 3]]).variance == pytest.approx(2 / 3)


def test_without_numbers_nothing_varies() -> None:
    assert of([]).std == of([[4.0]]).std == 0


@given(batches, batches)
def test_what_was_put_back_goes_on_to_the_same_bit(before: list[list[float]], after: list[list[float]]) -> None:
    one, other = of(before), RunningStatistics()
    other.load(one.state())
    for part in after:
        one.update(part)
        other.update(part)
    assert one.state() == other.state()
