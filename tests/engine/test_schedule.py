"""The learning rate of every update, against values worked out by hand."""

import math

import pytest

from worker.contract.parts import Optimizer
from worker.schedule import learning_rate, warmup_steps

pytestmark = pytest.mark.quick


def rates(steps: int, **settings: object) -> list[float]:
    optimizer = Optimizer.model_validate(settings)
    return [learning_rate(step, peak=1.0, steps=steps, optimizer=optimizer) for step in range(1, steps + 1)]


def test_constant_stays_at_the_peak() -> None:
    assert rates(3, schedule="constant", warmup=0.0) == [1.0, 1.0, 1.0]


def test_warmup_rises_by_equal_parts_and_its_last_step_has_the_peak() -> None:
    assert rates(6, schedule="constant", warmup=4.0) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_falls_by_equal_parts_towards_zero_after_the_last_step() -> None:
    assert rates(6, schedule="linear", warmup=2.0) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_cosine_is_at_half_the_peak_halfway() -> None:
    found = rates(4, schedule="cosine", warmup=0.0)
    assert found == pytest.approx([1.0, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4])


def test_inverse_sqrt_falls_with_the_root_of_the_steps_since_its_warmup_began() -> None:
    assert rates(17, schedule="inverse_sqrt", warmup=4.0)[3::4] == pytest.approx(
        [1.0, math.sqrt(4 / 7), math.sqrt(4 / 11), math.sqrt(4 / 15)]
    )


def test_wsd_stays_at_the_peak_and_falls_by_equal_parts_in_its_last_share() -> None:
    assert rates(10, schedule="wsd", warmup=2.0, decay=0.4) == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_a_floor_is_what_it_falls_to() -> None:
    assert rates(4, schedule="linear", warmup=0.0, floor=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4])


@pytest.mark.parametrize(
    ("warmup", "steps", "count"),
    [(0.0, 10, 0), (0.03, 100, 3), (0.07, 100, 7), (0.5, 3, 2), (5.0, 100, 5), (1.0, 9, 1)],
)
def test_warmup_is_a_share_below_one_and_a_count_from_one_on(warmup: float, steps: int, count: int) -> None:
    assert warmup_steps(warmup, steps) == count


def test_a_warmup_longer_than_the_job_still_ends_at_the_peak() -> None:
    assert rates(2, schedule="cosine", warmup=100.0) == [0.5, 1.0]
