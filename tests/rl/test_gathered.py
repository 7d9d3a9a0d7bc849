"""An engine generates as its plain model would, and trains on as if it had not."""

from typing import Any

import pytest

from tests.engine.pool import Pool
from tests.rl import gathering


def ran(pool: Pool, how: str, *arguments: Any, **more: Any) -> list[dict[str, Any]]:
    named = {"precision": "fp32", "lora": False, "config": "llama with tied weights", "greedy": False} | more
    return pool.run(gathering.train, how, *arguments, *named.values())


def of_each(told: list[dict[str, Any]], name: str) -> list[Any]:
    return [rank[name] for rank in told]


@pytest.mark.parametrize(
    ("zero", "more"),
    [
        (0, {}),
        (2, {}),
        (3, {}),
        (3, {"lora": True}),
        (3, {"precision": "bf16"}),
        (3, {"config": "gpt2 with learnt positions"}),
    ],
    ids=str,
)
def test_a_rollout_says_what_a_plain_copy_says_and_changes_no_update(two: Pool, zero: int, more: Any) -> None:
    without = ran(two, "nothing", zero, **more)
    copied = ran(two, "copied", zero, **more)
    found = ran(two, "gathered", zero, **more)
    assert of_each(found, "answers") == of_each(copied, "answers")
    assert found[0]["answers"][0] != found[0]["answers"][-1], "the updates changed no answer: the test shows little"
    assert of_each(found, "numbers") == of_each(without, "numbers")
    assert of_each(found, "weights") == of_each(without, "weights")
    assert of_each(found, "modes") == [[False, True] * gathering.UPDATES] * 2


def test_hooks_do_not_pile_up(two: Pool) -> None:
    without = ran(two, "nothing", 3)
    found = ran(two, "gathered", 3)
    assert of_each(found, "hooks") == of_each(without, "hooks")
    assert len(set(found[0]["hooks"])) == 1 and found[0]["hooks"][0] > 0


@pytest.mark.parametrize("zero", [1, 3])
def test_generating_on_shards_says_the_same_while_the_ranks_keep_step(two: Pool, zero: int) -> None:
    without = ran(two, "nothing", zero)
    copied = ran(two, "copied", zero)
    found = ran(two, "sharded", zero)
    assert of_each(found, "answers") == of_each(copied, "answers")
    assert of_each(found, "numbers") == of_each(without, "numbers")
    assert of_each(found, "weights") == of_each(without, "weights")
    # One rank has more than twice the prompts of the other, and both made as many steps.
    assert found[0]["modes"] == found[1]["modes"] and min(found[0]["modes"]) > 7


def test_what_does_not_fit_on_one_rank_is_gathered_on_none(two: Pool) -> None:
    for fits, told, counted in two.run(gathering.fits, 0):
        assert fits and told == counted > 0
    assert [fits for fits, _, _ in two.run(gathering.fits, 2**60)] == [False, False]
