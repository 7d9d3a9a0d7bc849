"""Rows of preferences, and methods that have read them, without an engine."""

import json
from collections.abc import Sequence
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.rl import comparisons
from worker.contract.check import parse_spec
from worker.contract.order import Input
from worker.dataset import Dataset
from worker.method import Method
from worker.models import Loaded, load

FIRST = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "a cat"}]


def pairs(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Rows for dpo and orpo: those for reward."""
    return comparisons.pairs(count, seed)


def judged(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Rows for kto, two of three to be given, and two of five with the same prompt."""
    rows = []
    for number, row in enumerate(row for row in comparisons.pairs(3 * count, seed) if "chosen" in row):
        wanted = number % 3 != 2
        prompt = FIRST if number % 5 in (0, 3) else row["prompt"]
        rows.append({"prompt": prompt, "completion": row["chosen" if wanted else "rejected"], "label": wanted})
    return rows[:count]


class Made:
    """A stage's method, its model, and its rows."""

    def __init__(self, folder: Path, stage: str, rows: Sequence[dict[str, Any]], **fields: Any):
        model = fields.pop("model")
        told = {"type": stage, "model": {"config": model}, "data": "files/x", "max_length": 256} | fields
        spec = parse_spec({"stage": told, "deepspeed": {"precision": "fp32"}})
        self.loaded: Loaded = load(spec, {}, folder)
        module: Any = import_module(f"worker.stages.{stage}")
        self.method: Method[Any] = getattr(module, stage.capitalize())(spec.stage)
        self.method.check(self.loaded)
        self.dataset = self.read(folder, rows)

    def read(self, folder: Path, rows: Sequence[dict[str, Any]]) -> Dataset:
        """What a file of `rows` becomes."""
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        digest = sha256(path.read_bytes()).hexdigest()
        source = Input(reference="files/rows", kind="file", location=str(path), sha256=digest, rows=len(rows))
        items = self.method.read(source, self.loaded.tokenizer)
        return self.method.prepare(Dataset(items, [], False, "", self.method.collate))

    def batch(self, rows: Sequence[Any] | None = None) -> Any:
        """Rows (all of them, unless given) as one micro-batch."""
        found = self.dataset.train if rows is None else rows
        pad_id = self.loaded.tokenizer.pad_token_id
        assert isinstance(pad_id, int)
        return self.method.collate([[row] for row in found], pad_id=pad_id)

    def sums(self, model: Any = None, batch: Any = None) -> Tensor:
        """The objective's, over all rows unless a batch is given."""
        return self.method.objective(self.loaded.model if model is None else model, batch or self.batch())

    def refer_to(self, values: Sequence[float] | Tensor) -> None:
        """What the reference says of all answers, by their numbers."""
        self.method.load_state({"reference": torch.as_tensor(values, dtype=torch.float32)})
