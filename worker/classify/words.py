"""What is told of an evaluation: names of curves, `evaluation.json`, and a table to read."""

import json
import re
from typing import Any

import numpy as np

from worker.classify.tally import Evaluation

FILE = "evaluation.json"
"""Beside the model: the last evaluation in full."""
_MOST_CURVES = 32
_MOST_IN_A_MATRIX = 12
_MOST_IN_A_TABLE = 40
# A metric's name has 64 characters.
_LONGEST_CURVE = 48
_WIDEST = 16


def points(found: Evaluation) -> dict[str, float]:
    """All points of an evaluation; of each class its F1, where they are not too many."""
    curves = curve_names(found.classes.names)
    return found.metrics | {f"eval/f1/{curve}": float(f1) for curve, f1 in zip(curves, found.f1, strict=False)}


def curve_names(names: tuple[str, ...]) -> list[str]:
    """What classes are called in names of metrics, which have small letters, digits and `_.-` alone; [] if too many."""
    if len(names) > _MOST_CURVES:
        return []
    made: list[str] = []
    for number, name in enumerate(names):
        plain = re.sub(r"[^a-z0-9_.-]+", "_", name.lower())[:_LONGEST_CURVE]
        plain = plain if plain.strip("_") else f"class_{number}"
        made.append(f"{plain}.{number}" if plain in made else plain)
    return made


def as_json(found: Evaluation) -> str:
    """`evaluation.json`."""
    told: dict[str, Any] = {"task": found.classes.task, "metrics": found.metrics}
    if found.classes.names:
        told["classes"] = {
            name: {
                "precision": float(found.precision[n]),
                "recall": float(found.recall[n]),
                "f1": float(found.f1[n]),
                "support": int(found.support[n]),
            }
            for n, name in enumerate(found.classes.names)
        }
        told["confusion"] = {
            "labels": list(found.classes.names),
            "axes": ["class", "there", "told"] if found.confusion.ndim == 3 else ["there", "told"],
            "counts": found.confusion.tolist(),
        }
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


def table(found: Evaluation) -> str:
    """The figures, each class's, and where it is small the confusion matrix, as text in columns."""
    plain = ", ".join(f"{name.removeprefix('eval/')} {value:.4f}" for name, value in found.metrics.items())
    names = found.classes.names
    if not names:
        return plain
    # The largest classes, where there are too many to read.
    shown = sorted(np.argsort(-found.support, kind="stable")[:_MOST_IN_A_TABLE].tolist())
    rows = [["", "precision", "recall", "f1", "rows"]]
    for n in shown:
        figures = [f"{float(figure[n]):.3f}" for figure in (found.precision, found.recall, found.f1)]
        rows.append([_short(names[n]), *figures, str(int(found.support[n]))])
    parts = [plain, _columns(rows)]
    if len(shown) < len(names):
        parts.append(f"and {len(names) - len(shown)} smaller classes, in {FILE}")
    if found.confusion.ndim == 2 and len(names) <= _MOST_IN_A_MATRIX:
        matrix = [["is \\ told", *map(_short, names)]]
        matrix += [[_short(name), *map(str, found.confusion[n].tolist())] for n, name in enumerate(names)]
        parts.append(_columns(matrix))
    return "\n\n".join(parts)


def _short(name: str) -> str:
    return name if len(name) <= _WIDEST else name[: _WIDEST - 1] + "…"


def _columns(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
