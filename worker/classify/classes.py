"""What a file's rows ask for: which task it is, and which classes there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from worker.contract.classify import MOST_CLASSES, ClassifyStage, Task
from worker.contract.rows import Labelled, Multilabelled, Row, Tagged
from worker.errors import BadData, BadSpec

Lines = Sequence[tuple[int, Row]]
"""Rows, each with its line."""

PROBLEMS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
"""`problem_type` in a model's configuration, by the task."""


@dataclass(frozen=True)
class Classes:
    """The task, and the names of its classes in their order; a regression has none."""

    task: Task
    names: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Numbers that the head gives."""
        return 1 if self.task == "regression" else len(self.names)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Each class's place."""
        return {name: number for number, name in enumerate(self.names)}


def classes_of(rows: Lines, stage: ClassifyStage, known: tuple[str, ...] | None) -> Classes:
    """The task and the classes of training rows. `known` are those that the model to begin with tells apart already.

    Raises BadSpec, and BadData with the row's line: also for a label that is no class.
    """
    task = task_of(rows, stage)
    if task == "regression":
        check_labels(rows, Classes(task), "")
        return Classes(task)
    found = {name for _, row in rows for name in labels_of(row)}
    names = tuple(stage.labels or known or _in_order(found))
    if len(names) > MOST_CLASSES:
        raise BadData(f"the rows have {len(names)} classes; at most {MOST_CLASSES} are told apart")
    if len(names) < 2:
        raise BadData(f"all rows have the label `{names[0]}`: one class is nothing to tell apart" if names else _NONE)
    weighted = stage.class_weights if isinstance(stage.class_weights, dict) else {}
    if unknown := [name for name in weighted if name not in names]:
        raise BadSpec(f"stage.class_weights: `{unknown[0]}` is no class; there are {_listed(names)}")
    classes = Classes(task, names)
    check_labels(rows, classes, "stage.labels" if stage.labels else "the model's classes")
    return classes


_NONE = "no row has a label: there is nothing to tell apart"


def task_of(rows: Lines, stage: ClassifyStage) -> Task:
    """What the rows ask for; they are all of one kind. Raises BadSpec, and BadData with the row's line."""
    line, first = rows[0]
    for other, row in rows:
        if type(row) is not type(first):
            raise BadData(f"line {other}: is of another kind than line {line}; all rows of a file are of one")
    if isinstance(first, Labelled):
        return "regression" if stage.regression else "single_label"
    if stage.regression:
        raise BadSpec("stage.regression: needs rows of `{text, label}`, each label a number")
    if isinstance(first, Multilabelled):
        return "multi_label"
    assert isinstance(first, Tagged)  # no other kind is read for this stage
    return "tokens"


def labels_of(row: Row) -> list[str]:
    """The classes that a row names."""
    if isinstance(row, Labelled):
        return [str(row.label)]
    if isinstance(row, Multilabelled):
        return [str(label) for label in row.labels]
    assert isinstance(row, Tagged)
    return [str(tag) for tag in row.tags]


def check_labels(rows: Lines, classes: Classes, of: str) -> None:
    """Raises BadData for the first row with a label that is no class; `of` says where the classes come from."""
    for line, row in rows:
        if classes.task == "regression":
            if not isinstance(row, Labelled) or isinstance(row.label, str):
                raise BadData(f"line {line}: `label` must be a number, since stage.regression is set")
            continue
        if isinstance(row, Labelled) and isinstance(row.label, float):
            raise BadData(
                f"line {line}: `label` is {row.label}, which is no class's name; for numbers set stage.regression: true"
            )
        if unknown := [label for label in labels_of(row) if label not in classes.numbers]:
            raise BadData(f"line {line}: the label `{unknown[0]}` is none of {of}: {_listed(classes.names)}")


def _in_order(names: set[str]) -> list[str]:
    """Sorted: numbers by their size, where all are."""
    if all(name.removeprefix("-").isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
