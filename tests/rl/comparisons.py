"""Small reward models in plain processes, and rows for them."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tests.engine.jobs import words
from worker.contract.check import parse_spec
from worker.models import Loaded, load
from worker.pairs import Comparison, read_comparisons


def pairs(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Rows for reward, of uneven lengths: two answers, three of which two are as good, and some with a margin."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        prompt: Any = words(rng, 1, 4)
        if number % 4 == 3:
            prompt = [{"role": "system", "content": "be kind"}, {"role": "user", "content": prompt}]
        if number % 3 == 2:
            answers = [{"text": f"{words(rng, 1, 6)} {score}", "score": score} for score in (1, 2, 1)]
            rows.append({"prompt": prompt, "answers": answers})
            continue
        row = {"prompt": prompt, "chosen": words(rng, 1, 8) + " good", "rejected": words(rng, 1, 8) + " bad"}
        rows.append(row | ({"margin": 0.5} if number % 4 == 1 else {}))
    return rows


def scalar(config: dict[str, Any], folder: Path, *, learnt: bool = True, **fields: Any) -> Loaded:
    """A reward model from scratch; `learnt`: with a head that is not zero any more. `fields` go into the stage."""
    stage = {"type": "reward", "model": {"config": config}, "data": "files/x", "max_length": 64} | fields
    loaded = load(parse_spec({"stage": stage, "deepspeed": {"precision": "fp32"}}), {}, folder)
    if learnt:
        for name, parameter in loaded.model.named_parameters():
            if "score" in name:
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    loaded.model.eval()
    return loaded


def read(
    folder: Path,
    rows: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 256,
    truncate: bool = False,
) -> list[Comparison]:
    """What a file of `rows` becomes."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_comparisons(path, "files/rows", tokenizer, max_length=max_length, truncate=truncate, name="the model")
