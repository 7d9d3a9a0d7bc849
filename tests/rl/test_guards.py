"""Guards: each with a run that trips it and one that does not, and what is said how often."""

import json
import math
from collections.abc import Iterable
from typing import Any

import pytest

from worker.contract.guards import Guards
from worker.rl.guards import HeldOut, Observed, Precision, Tripped, Watch

pytestmark = pytest.mark.quick


def watch(precision: Precision = "fp32", **guards: Any) -> Watch:
    return Watch(Guards.model_validate(guards), precision)


def once(seen: Observed, precision: Precision = "fp32", **guards: Any) -> list[Tripped]:
    return watch(precision, **guards).look(1, seen)


WELL = Observed(
    kl=3.0, reward=0.2, length=40.0, cut=0.1, ratio_error=0.0, entropy=1.5, without_gradient=[], held_out=HeldOut(0, 1)
)
GUARDS = ["kl", "length", "ratio", "entropy", "gradient"]
TRIPPING = [
    ("kl", Observed(kl=50.1), "50.1 nats an answer from its reference, more than 50"),
    ("kl", Observed(kl=math.nan), "nan nats"),
    ("length", Observed(length=1.9), "1.9 tokens on average, fewer than 2"),
    ("length", Observed(length=math.nan), "nan tokens"),
    ("length", Observed(length=64.0, cut=1.0), "100.0% of the answers were cut off"),
    ("length", Observed(cut=0.98), "98.0% of the answers were cut off"),
    ("ratio", Observed(ratio_error=2e-4), "off 1 by 0.0002, more than 0.0001"),
    ("ratio", Observed(ratio_error=math.inf), "off 1 by inf"),
    ("ratio", Observed(ratio_error=math.nan), "off 1 by nan"),
    ("entropy", Observed(entropy=0.04), "0.04 nats a token, less than 0.05"),
    ("entropy", Observed(entropy=math.nan), "nan nats a token"),
    ("gradient", Observed(without_gradient=list("abcdefg")), "no gradient reached a, b, c, d, e and 2 more"),
]


def test_a_run_that_goes_well_trips_nothing() -> None:
    assert once(WELL) == []


@pytest.mark.parametrize(("name", "seen", "said"), TRIPPING)
def test_what_goes_wrong_trips_its_guard_and_no_other(name: str, seen: Observed, said: str) -> None:
    (tripped,) = once(seen)
    assert tripped.name == name and said in tripped.message
    assert tripped.event == f"{name.capitalize()}Guard"


@pytest.mark.parametrize(("name", "seen", "said"), TRIPPING)
def test_a_guard_that_is_switched_off_says_nothing(name: str, seen: Observed, said: str) -> None:
    assert once(seen, **{name: None}) == []


@pytest.mark.parametrize(
    "seen",
    [
        Observed(kl=50.0),
        Observed(length=2.0, cut=0.97),
        Observed(ratio_error=1e-4),
        Observed(entropy=0.05),
        Observed(kl=-1.0),
    ],
)
def test_what_is_at_the_threshold_is_still_well(seen: Observed) -> None:
    assert once(seen) == []


def test_in_bf16_the_ratio_may_be_off_by_more_and_a_threshold_of_the_spec_wins() -> None:
    assert once(Observed(ratio_error=9e-3), "bf16") == []
    assert once(Observed(ratio_error=1.1e-2), "bf16") != []
    assert once(Observed(ratio_error=1e-3), "bf16", ratio={"max": 1e-4}) != []


@pytest.mark.parametrize("then", ["warn", "pause", "stop"])
def test_what_is_done_is_what_the_spec_says(then: str) -> None:
    assert [tripped.then for tripped in once(Observed(kl=99.0), kl={"then": then})] == [then]


def test_without_a_word_in_the_spec_bugs_stop_and_the_rest_warns() -> None:
    seen = Observed(kl=99.0, length=0.0, ratio_error=1.0, entropy=0.0, without_gradient=["w"])
    assert {tripped.name: tripped.then for tripped in once(seen)} == {
        "kl": "warn", "length": "warn", "ratio": "stop", "entropy": "warn", "gradient": "stop"
    }  # fmt: skip


def test_a_warning_comes_once_until_it_was_well_in_between() -> None:
    watching = watch()
    kls = [60.0, 70.0, 10.0, 60.0, 60.0]
    assert [len(watching.look(step, Observed(kl=kl))) for step, kl in enumerate(kls, 1)] == [1, 0, 0, 1, 0]


def test_what_was_not_looked_at_is_neither_well_nor_wrong() -> None:
    watching = watch()
    assert watching.look(1, Observed(kl=60.0)) != []
    assert watching.look(1, Observed(entropy=1.0)) == []
    assert watching.look(2, Observed(kl=60.0)) == []


def test_a_stop_stops_each_time_and_a_pause_lets_the_run_go_on_after_it() -> None:
    stopping, pausing = watch(kl={"then": "stop"}), watch(kl={"then": "pause"})
    assert [len(stopping.look(step, Observed(kl=60.0))) for step in (1, 2)] == [1, 1]
    assert len(pausing.look(1, Observed(kl=60.0))) == 1
    resumed = watch(kl={"then": "pause"})
    resumed.load(pausing.state())
    assert resumed.look(2, Observed(kl=60.0)) == []


Iteration = tuple[float, float, float | None]  # reward, KL, held-out reward


def hacked(iterations: Iterable[Iteration], **guard: Any) -> list[int]:
    """The iterations at which the hacking guard trips."""
    watching = watch(hacking={"window": 3, "drop": 0.5, "budget": 20.0} | guard, kl=None)
    return [step for step, seen in enumerate(iterations, 1) if watching.look(step, observed(seen))]


def observed(iteration: Iteration) -> Observed:
    reward, kl, held_out = iteration
    return Observed(reward=reward, kl=kl, held_out=None if held_out is None else HeldOut(held_out, 1.0))


def rising(count: int, kl: float = 1.0, held_out: float | None = None) -> list[Iteration]:
    return [(0.1 * n, kl, held_out) for n in range(count)]


def test_a_reward_that_rises_together_with_the_held_out_one_is_no_hacking() -> None:
    assert hacked([(0.1 * n, 1.0, 0.1 * n) for n in range(20)]) == []


def test_a_reward_that_rises_while_the_held_out_one_falls_is_hacking() -> None:
    # Means of what there is: at iterations 4, 5 and 6 it has fallen by .4, .5 and .6.
    assert hacked([(0.1 * n, 1.0, -0.2 * n) for n in range(8)], drop=0.55) == [6]


def test_a_held_out_reward_may_fall_by_the_drop_of_the_spec() -> None:
    assert hacked([(0.1 * n, 1.0, -0.2 * n) for n in range(12)], drop=0.7) == []


def test_both_rewards_falling_is_no_hacking() -> None:
    assert hacked([(-0.1 * n, 1.0, -0.5 * n) for n in range(12)]) == []


def test_a_held_out_reward_that_is_measured_seldom_is_compared_with_the_newest_measure_before_the_window() -> None:
    run = [(0.1 * n, 1.0, {0: 1.0, 10: 0.9, 20: 0.0}.get(n)) for n in range(25)]
    assert hacked(run) == [21]


def test_a_measure_before_the_first_iteration_counts() -> None:
    watching = watch(hacking={"window": 2, "drop": 0.5})
    assert watching.look(0, Observed(held_out=HeldOut(1.0, 1.0))) == []
    assert [len(watching.look(n, Observed(reward=0.1 * n, kl=1.0))) for n in (1, 2, 3)] == [0, 0, 0]
    assert len(watching.look(4, Observed(reward=0.4, kl=1.0, held_out=HeldOut(0.0, 1.0)))) == 1


def test_a_rise_beyond_the_kl_budget_is_hacking_once_two_windows_are_full() -> None:
    assert hacked(rising(8, kl=21.0)) == [6]
    assert hacked(rising(8, kl=20.0)) == []
    assert hacked(rising(5, kl=21.0)) == []


def test_a_reward_that_stands_still_has_bought_nothing_with_its_kl() -> None:
    assert hacked([(1.0, 99.0, None)] * 10) == []


def test_the_guard_warns_again_when_the_held_out_reward_falls_anew() -> None:
    # At 4: 0 before, -2/3 now. At 11: -2/3 before, -4/3 now; at 10 it was still above those before, -4/3.
    held_out = [0, 0, 0, -2, -2, -2, 0, 0, 0, -2, -2, -2]
    assert hacked([(0.1 * n, 1.0, float(mean)) for n, mean in enumerate(held_out)]) == [4, 11]


def test_a_resumed_watch_trips_where_an_unbroken_one_does() -> None:
    fields = {"hacking": {"window": 3, "drop": 0.5, "budget": 20.0, "then": "stop"}, "kl": {"max": 30.0}}
    run = [(0.1 * n, 5.0 * n, -0.2 * n if n % 2 else None) for n in range(14)]
    whole = watch(**fields)
    wanted = [whole.look(step, observed(seen)) for step, seen in enumerate(run, 1)]
    assert sum(map(len, wanted)) > 3
    for cut in range(len(run)):
        before, after = watch(**fields), watch(**fields)
        found = [before.look(step, observed(seen)) for step, seen in enumerate(run[:cut], 1)]
        after.load(json.loads(json.dumps(before.state())))
        found += [after.look(step, observed(seen)) for step, seen in enumerate(run[cut:], cut + 1)]
        assert found == wanted


def test_what_is_remembered_does_not_grow_with_the_run() -> None:
    watching = watch(hacking={"window": 3})
    sizes = set()
    for step in range(1, 200):
        watching.look(step, Observed(reward=step % 7, kl=1.0, held_out=HeldOut(step % 5, 1.0)))
        state = watching.state()["hacking"]
        sizes.add((len(state["iterations"]), len(state["measures"])))
    assert max(sizes) == (6, 6)
