"""What each update sees, and how many updates there are."""

from typing import Any

import numpy as np
import pytest

from worker import feed, packing
from worker.contract.check import InvalidSpec, parse_spec
from worker.contract.spec import JobSpec
from worker.data import Sample, sample
from worker.dataset import Dataset
from worker.feed import Feed


def spec(type: str = "sft", **stage: Any) -> JobSpec:
    """A spec that packs."""
    fields = {"model": "./m", "data": "./d", "batch": 2, "max_length": 16, "packing": True, **stage}
    return parse_spec({"stage": {"type": type, **fields}})


def feed_of(samples: list[Sample], spec: JobSpec, *, split: bool) -> Feed:
    return Feed(Dataset(samples, [], split, ""), spec, rank=0, world=1, pad_id=0)


def lengths(count: int, longest: int) -> list[Sample]:
    """Samples of drawn lengths."""
    draw = np.random.default_rng(7)
    return [sample([1] * n, [True] * n) for n in draw.integers(2, longest + 1, count).tolist()]


@pytest.mark.parametrize(("type", "split", "longest"), [("pretrain", True, 40), ("sft", False, 16)])
def test_the_updates_of_ten_thousand_epochs_are_counted_without_packing_them(
    monkeypatch: pytest.MonkeyPatch, type: str, split: bool, longest: int
) -> None:
    samples = lengths(50, longest)
    every = [len(feed_of(samples, spec(type), split=split).epoch(number)) for number in range(20)]
    packed: list[int] = []

    def count(*arguments: Any, epoch: int, **how: Any) -> Any:
        packed.append(epoch)
        return packing.updates(*arguments, epoch=epoch, **how)

    monkeypatch.setattr(feed, "updates", count)
    made = feed_of(samples, spec(type, epochs=20), split=split)
    assert made.steps() == sum(every)
    assert feed_of(samples, spec(type, epochs=10_000), split=split).steps() == 500 * sum(every)
    assert packed == [0, 0]


def test_where_epochs_differ_in_their_rows_each_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_WINDOW", 8)
    samples = lengths(50, 16)
    every = [len(feed_of(samples, spec(batch=1), split=False).epoch(number)) for number in range(20)]
    assert len(set(every)) > 1
    assert feed_of(samples, spec(batch=1, epochs=20), split=False).steps() == sum(every)


def test_more_epochs_than_any_job_makes_are_refused() -> None:
    with pytest.raises(InvalidSpec) as error:
        spec(epochs=2_000_000_000)
    assert [problem.path for problem in error.value.problems] == ["stage.epochs"]
    assert "10000" in error.value.problems[0].message.replace(",", "")
