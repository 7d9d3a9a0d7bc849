"""A real encoder, MiniLM, learns the topics of real dialogues.

Stated before it was run: of dialogues whose openings it has not seen, it tells more topics right than logistic
regression on their words does, which may choose its penalty by these very dialogues; on the mean over three ways to
hold some out, at least 3 of 100 more.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from examples.topics import minilm, write
from tests.classify.floor import accuracy
from tests.engine import jobs
from tests.engine.jobs import Job
from tests.engine.pool import Pool


def told(pool: Pool, folder: Path, seed: int) -> tuple[float, float]:
    """Held-out accuracy of the linear model and of MiniLM."""
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = ([json.loads(line) for line in path.open()] for path in write(folder, seed=seed))
    changes: dict[str, Any] = {
        "stage__model": str(minilm()),
        "stage__batch": 16,
        "stage__micro_batch": 16,
        "stage__steps": 45,
        "stage__max_length": 48,
        "stage__data": {"train": "files/train", "truncate": True},
        "stage__seed": seed,
        "stage__class_weights": "balanced",
        "stage__optimizer": {"lr": 2e-4, "warmup": 0.1},
        "evaluate": {"data": "files/eval"},
    }
    made = Job(folder, jobs.spec("classify", **changes), train, held_out=held_out)
    ended = pool.run(jobs.attempt, made, 1, timeout=500)[0]
    assert ended.outcome == "Finished", ended.message
    return accuracy(train, held_out), ended.curve("eval/accuracy")[45]


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_they_are_told_better_however_some_are_held_out(one: Pool, tmp_path: Path) -> None:
    every = []
    for seed in (1, 2, 3):
        every.append(told(one, tmp_path / str(seed), seed))
        print("held-out accuracy by words and by MiniLM: {:.3f} {:.3f}".format(*every[-1]), flush=True)
    assert all(found > floor for floor, found in every)
    assert sum(found - floor for floor, found in every) / len(every) >= 0.03
