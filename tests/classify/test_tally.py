"""The figures of an evaluation, worked out by hand, and how they are told."""

import json

import pytest
import torch

from worker.classify.classes import Classes
from worker.classify.examples import ClassBatch
from worker.classify.tally import Tally
from worker.classify.words import as_json, curve_names, points, table
from worker.contract.metrics import known
from worker.contract.protocol import Metric
from worker.distributed import Ranks

THREE = Classes("single_label", ("cat", "dog", "fish"))
SEVERAL = Classes("multi_label", ("cat", "dog"))


def batch(labels: torch.Tensor) -> ClassBatch:
    none = torch.zeros(0, dtype=torch.int64)
    return ClassBatch(none, none, none, none, none, labels, torch.ones(len(labels)), 0, float(len(labels)))


def told(classes: Classes, there: list[int], told: list[int]) -> Tally:
    """The tally of labels and what was told, in two batches."""
    tally = Tally(classes)
    for half in (slice(0, 3), slice(3, None)):
        logits = 9.0 * torch.nn.functional.one_hot(torch.tensor(told[half]), len(classes.names))
        tally.add(logits, batch(torch.tensor(there[half])))
    return tally


def test_accuracy_f1_and_confusion_by_hand() -> None:
    # cats: 2 of 3 told, and one dog told as a cat. Dogs: 1 of 2. Fish: 1 of 1, and one cat told as a fish.
    found = told(THREE, [0, 0, 0, 1, 1, 2], [0, 0, 2, 0, 1, 2]).result()
    assert found.confusion.tolist() == [[2, 0, 1], [1, 1, 0], [0, 0, 1]]
    assert found.precision.tolist() == pytest.approx([2 / 3, 1, 1 / 2])
    assert found.recall.tolist() == pytest.approx([2 / 3, 1 / 2, 1])
    assert found.f1.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    assert found.support.tolist() == [3, 2, 1]
    assert found.metrics["eval/accuracy"] == pytest.approx(4 / 6)
    assert found.metrics["eval/macro_f1"] == pytest.approx(2 / 3)


def test_a_class_that_is_neither_there_nor_told_is_not_in_the_mean() -> None:
    assert told(THREE, [0, 0, 1, 1], [0, 0, 1, 1]).result().metrics["eval/macro_f1"] == 1
    # Told, though it is not there: its F1 of 0 counts.
    assert told(THREE, [0, 0, 1, 1], [0, 0, 1, 2]).result().metrics["eval/macro_f1"] == pytest.approx((1 + 2 / 3) / 3)


def test_several_labels_by_hand() -> None:
    tally = Tally(SEVERAL)
    logits = torch.tensor([[2.0, -2.0], [2.0, 2.0], [-2.0, -2.0], [-2.0, 2.0]])
    tally.add(logits, batch(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])))
    found = tally.result()
    # Rows 1 and 3 are right as wholes. cat: 2 of 3 told, none wrongly; dog: 1 of 1, one wrongly.
    assert found.metrics["eval/accuracy"] == 0.5
    assert found.f1.tolist() == pytest.approx([0.8, 2 / 3])
    assert found.metrics["eval/macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert found.metrics["eval/micro_f1"] == pytest.approx(2 * 3 / (4 + 4))
    assert found.confusion.tolist() == [[[1, 0], [1, 2]], [[2, 1], [0, 1]]]


def test_correlations_by_hand() -> None:
    tally = Tally(Classes("regression"))
    tally.add(torch.tensor([[1.0], [2.0], [2.0], [10.0]]), batch(torch.tensor([1.0, 3.0, 2.0, 4.0])))
    found = tally.result().metrics
    assert found["eval/loss"] == pytest.approx((0 + 1 + 0 + 36) / 4)
    # Deviations (-2.75, -1.75, -1.75, 6.25) and (-1.5, .5, -.5, 1.5): 13.5 / sqrt(52.75 x 5).
    assert found["eval/pearson"] == pytest.approx(13.5 / (52.75 * 5) ** 0.5)
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: 4.5 / sqrt(4.5 x 5).
    assert found["eval/spearman"] == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def test_what_does_not_vary_correlates_with_nothing() -> None:
    tally = Tally(Classes("regression"))
    tally.add(torch.ones(3, 1), batch(torch.tensor([1.0, 3.0, 2.0])))
    assert tally.result().metrics["eval/pearson"] == 0


class Alone(Ranks):
    """One rank, which has met nobody."""

    def __init__(self) -> None:
        self.rank, self.world = 0, 1


def test_the_sums_of_all_ranks_keep_their_shape() -> None:
    for tally in (told(THREE, [0, 0, 0, 1, 1, 2], [0, 0, 2, 0, 1, 2]), Tally(SEVERAL), Tally(Classes("regression"))):
        over = tally.over(Alone())
        assert over.confusion.tolist() == tally.confusion.tolist()
        assert over.plain.tolist() == tally.plain.tolist()


@pytest.mark.parametrize(
    ("names", "curves"),
    [
        (("Cat", "B-PER", "two words"), ["cat", "b-per", "two_words"]),
        (("猫", "犬"), ["class_0", "class_1"]),
        (("a", "A", "a!"), ["a", "a.1", "a_"]),
        (("x" * 200, "y"), ["x" * 48, "y"]),
        (tuple(map(str, range(33))), []),
    ],
)
def test_classes_have_curves_under_names_that_the_protocol_takes(names: tuple[str, ...], curves: list[str]) -> None:
    assert curve_names(names) == curves
    for curve in curves:
        Metric.model_validate({"name": f"eval/f1/{curve}", "step": 1, "value": 0.5, "at": "2026-01-01T00:00:00Z"})
        assert known(f"eval/f1/{curve}")


def test_an_evaluation_is_told_as_curves_a_file_and_a_table() -> None:
    found = told(THREE, [0, 0, 0, 1, 1, 2], [0, 0, 2, 0, 1, 2]).result()
    assert points(found)["eval/f1/fish"] == pytest.approx(2 / 3)
    written = json.loads(as_json(found))
    assert written["classes"]["dog"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert written["confusion"] == {
        "labels": ["cat", "dog", "fish"],
        "axes": ["there", "told"],
        "counts": [[2, 0, 1], [1, 1, 0], [0, 0, 1]],
    }
    lines = table(found).splitlines()
    assert "fish      0.500   1.000  0.667     1" in lines
    assert lines[-4:] == [
        "is \\ told  cat  dog  fish",
        "cat          2    0     1",
        "dog          1    1     0",
        "fish         0    0     1",
    ]


def test_a_table_of_many_classes_shows_the_largest_and_no_matrix() -> None:
    many = Classes("single_label", tuple(f"c{n}" for n in range(100)))
    there = [*range(100), 77, 99]
    shown = table(told(many, there, there).result())
    assert "c77" in shown and "c99" in shown and "c98" not in shown
    assert "and 60 smaller classes, in evaluation.json" in shown
    assert "is \\ told" not in shown
    assert len(shown) < 8192
