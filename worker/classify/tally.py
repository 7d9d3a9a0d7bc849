"""How well a classifier does: what adds up over batches and ranks, and the figures that follow from it.

A class's figures are those of the usual definitions: precision is right / told, recall right / there, and F1 their
harmonic mean, 0 where nothing is right. Macro-F1 is the mean over the classes that are there or were told.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from worker.classify.classes import Classes
from worker.classify.examples import ClassBatch
from worker.classify.objective import class_logits, class_sums
from worker.distributed import Ranks
from worker.engine import Engine
from worker.state import undisturbed


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation came to."""

    classes: Classes
    metrics: dict[str, float]
    """Points of curves, by the names of `worker.contract.metrics`, but for those of single classes."""
    precision: NDArray[np.float64]  # [classes]; of a regression all these are empty
    recall: NDArray[np.float64]  # [classes]
    f1: NDArray[np.float64]  # [classes]
    support: NDArray[np.int64]  # [classes]: how many there are
    confusion: NDArray[np.int64]
    """[there, told]; of rows with several classes [classes, there, told], each class by itself."""


@dataclass
class Tally:
    """Sums over labels that have been read."""

    classes: Classes
    plain: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    """[loss, the labels' weights, right, read]."""
    confusion: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    values: list[tuple[float, float]] = field(default_factory=list)
    """Of a regression: what was told, and what it is."""

    def __post_init__(self) -> None:
        count = len(self.classes.names)
        if not len(self.confusion) and count:
            several = self.classes.task == "multi_label"
            self.confusion = np.zeros((count, 2, 2) if several else (count, count))

    def add(self, logits: Tensor, batch: ClassBatch, positive: Tensor | None = None) -> None:
        """Takes what a model says of a batch, [read, outputs]."""
        logits, batch = logits.detach().double().cpu(), batch.to("cpu")
        if batch.labels.is_floating_point():
            batch = replace(batch, labels=batch.labels.double())
        loss, right, read = class_sums(logits, batch, positive).tolist()
        self.plain += np.array([loss, batch.trained, right, read])
        if self.classes.task == "regression":
            self.values += zip(logits[:, 0].tolist(), batch.labels.tolist(), strict=True)
        elif self.classes.task == "multi_label":
            there, told = batch.labels.numpy().astype(int), (logits > 0).numpy().astype(int)
            each = np.broadcast_to(np.arange(there.shape[1]), there.shape)
            np.add.at(self.confusion, (each, there, told), 1)
        else:
            np.add.at(self.confusion, (batch.labels.numpy(), logits.argmax(dim=-1).numpy()), 1)

    def over(self, ranks: Ranks) -> "Tally":
        """The tally of all ranks."""
        sums = np.array(ranks.sum([*self.plain.tolist(), *self.confusion.ravel().tolist()]))
        values = ranks.gather(self.values) if self.classes.task == "regression" else []
        return Tally(self.classes, sums[:4], sums[4:].reshape(self.confusion.shape), values)

    def result(self) -> Evaluation:
        """The figures."""
        loss, weight, right, read = self.plain.tolist()
        metrics = {"eval/loss": loss / max(1.0, weight)}
        if self.classes.task == "regression":
            told, there = np.array(self.values, dtype=np.float64).reshape(-1, 2).T
            metrics |= {
                "eval/pearson": correlation(told, there),
                "eval/spearman": correlation(_ranked(told), _ranked(there)),
            }
            none = np.zeros(0)
            return Evaluation(self.classes, metrics, none, none, none, none.astype(np.int64), none.astype(np.int64))
        metrics["eval/accuracy"] = right / max(1.0, read)
        if self.classes.task == "multi_label":
            hits, told_, there_ = self.confusion[:, 1, 1], self.confusion[:, :, 1].sum(1), self.confusion[:, 1].sum(1)
            metrics["eval/micro_f1"] = float(_f1(hits.sum(), told_.sum(), there_.sum()))
        else:
            hits, told_, there_ = np.diagonal(self.confusion), self.confusion.sum(0), self.confusion.sum(1)
        f1, seen = _f1(hits, told_, there_), told_ + there_ > 0
        metrics["eval/macro_f1"] = float(f1[seen].mean()) if seen.any() else 0.0
        return Evaluation(
            classes=self.classes,
            metrics=metrics,
            precision=hits / np.maximum(told_, 1),
            recall=hits / np.maximum(there_, 1),
            f1=f1,
            support=there_.astype(np.int64),
            confusion=self.confusion.astype(np.int64),
        )


def evaluate_classes(
    engine: Engine,
    batches: list[ClassBatch],
    ranks: Ranks,
    between: Callable[[], None],
    classes: Classes,
    positive: Tensor | None = None,
) -> Evaluation:
    """The figures of all ranks' batches.

    `between` is called before every micro-batch, the same number of times on each rank; what it raises passes through.
    """
    tally = Tally(classes)
    with undisturbed():
        for batch in batches:
            between()
            tally.add(engine.eval_micro(batch, class_logits), batch, positive)
    return tally.over(ranks).result()


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's; 0 where one of the two does not vary."""
    a, b = a - a.mean() if len(a) else a, b - b.mean() if len(b) else b
    spread = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / spread) if spread else 0.0


def _ranked(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values' ranks; those of equal ones are averaged."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    averages: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return averages


def _f1(hits: NDArray[np.float64], told: NDArray[np.float64], there: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 2 * hits / np.maximum(told + there, 1)
    return found
