"""What people prefer is learnt, and not only the rows that were shown.

Real dialogues, with people who want to be answered in English: each English reply stands against a real reply in
Spanish. A model of bytes has to tell the languages apart by what it learns alone. The measure was stated before any of
it was run: on openings and replies that it has not seen, accuracy is at least .85, on at least 4 of 5 seeds. A coin has
.5. Rates and lengths of orpo and kto were then found on other seeds (11 to 13) than those that count (1 to 5).
"""

import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples import dialogues
from tests.engine import jobs
from tests.engine.jobs import Job
from tests.engine.pool import Pool

WANTED = 0.85
MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "dpo": {"stage__steps": 40, "stage__optimizer": {"lr": 1e-3, "warmup": 0.1}},
    "orpo": {"stage__steps": 40, "stage__optimizer": {"lr": 3e-3, "warmup": 0.1}, "stage__beta": 1.0},
    "kto": {"stage__steps": 60, "stage__optimizer": {"lr": 5e-4, "warmup": 0.1}},
}


def spanish() -> list[str]:
    """Real replies, each once."""
    folder = files("chatterbot_corpus") / "data" / "spanish"
    found = set()
    for file in sorted(folder.iterdir(), key=str):
        for lines in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            found |= {" ".join(str(line).split()) for line in lines[1:]}
    return sorted(reply for reply in found if 0 < len(reply) <= 120)


def rows(stage: str, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is learnt from, and what is held out: a quarter of the openings, with replies of their own."""
    rng = random.Random(seed)
    said: dict[str, list[tuple[str, str]]] = {}
    for row in dialogues.rows():
        opening, reply = (turn["content"] for turn in row["messages"][:2])
        said.setdefault(opening.lower(), []).append((opening, reply))
    openings, other = sorted(said), spanish()
    rng.shuffle(openings)
    rng.shuffle(other)
    quarters = [openings[len(openings) // 4 :], openings[: len(openings) // 4]]
    english = [[turns for opening in quarter for turns in said[opening]] for quarter in quarters]
    parts = []
    for of_english, of_spanish in (
        (english[0], other[len(other) // 4 :]),
        (english[1], other[: len(other) // 4]),
    ):
        compared = [(prompt, reply, rng.choice(of_spanish)) for prompt, reply in of_english]
        if stage == "kto":
            wanted = [rng.random() < 0.5 for _ in compared]
            parts.append(
                [
                    {"prompt": prompt, "completion": reply if label else worse, "label": label}
                    for (prompt, reply, worse), label in zip(compared, wanted, strict=True)
                ]
            )
        else:
            parts.append([{"prompt": p, "chosen": reply, "rejected": worse} for p, reply, worse in compared])
    return parts[0], parts[1]


def accuracy(pool: Pool, folder: Path, stage: str, seed: int) -> float:
    """Held-out accuracy at the end."""
    learnt, held_out = rows(stage, seed)
    changes: dict[str, Any] = {
        "stage__model": {"config": MODEL},
        "stage__batch": 16,
        "stage__micro_batch": 16,
        "stage__max_length": 512,
        "stage__seed": seed,
        "evaluate": {"data": "files/eval"},
    }
    made = Job(folder, jobs.spec(stage, **changes | SETTINGS[stage]), learnt, held_out=held_out)
    ended = pool.run(jobs.attempt, made, 1, timeout=300)[0]
    assert ended.outcome == "Finished", ended.message
    return float(ended.curve("eval/accuracy")[SETTINGS[stage]["stage__steps"]])


@pytest.mark.parametrize("stage", SETTINGS)
def test_held_out_answers_are_told_apart_as_people_did(one: Pool, tmp_path: Path, stage: str) -> None:
    assert accuracy(one, tmp_path, stage, seed=1) >= WANTED


@pytest.mark.soak
@pytest.mark.parametrize("stage", SETTINGS)
def test_four_of_five_seeds_learn(one: Pool, tmp_path: Path, stage: str) -> None:
    found = [accuracy(one, tmp_path / str(seed), stage, seed) for seed in range(1, 6)]
    print(f"held-out accuracy of {stage} by seed:", [f"{value:.3f}" for value in found])
    assert sum(value >= WANTED for value in found) >= 4
