"""Whoever could not be heard is not silent: after a sleep, a freeze or a step of the clock all waits begin anew."""

import pytest

from api.operator.awake import Awake
from tests.operator.builders import at

pytestmark = pytest.mark.quick


def awake() -> Awake:
    """One that came up at the zero hour, with the monotonic clock at 100 s."""
    return Awake(30.0, 100.0, at(0))


def test_a_loop_that_turns_was_awake_since_it_came_up() -> None:
    looked = awake()
    assert [looked.since(100.0 + n, at(n)) for n in (1, 20, 45)] == [at(0)] * 3


def test_a_frozen_process_hears_from_when_it_goes_on() -> None:
    assert awake().since(200.0, at(100)) == at(100)


def test_a_machine_that_slept_hears_from_when_it_woke_though_the_monotonic_clock_stood_still() -> None:
    looked = awake()
    assert looked.since(100.5, at(7200)) == at(7200)
    assert looked.since(101.5, at(7201)) == at(7200)


@pytest.mark.parametrize("step", [-7200, 7200])
def test_a_clock_that_was_set_makes_nobody_silent(step: int) -> None:
    looked = awake()
    looked.since(110.0, at(10))
    assert looked.since(111.0, at(11 + step)) == at(11 + step)


def test_a_clock_that_is_put_right_by_little_changes_nothing() -> None:
    assert awake().since(101.0, at(3)) == at(0)
