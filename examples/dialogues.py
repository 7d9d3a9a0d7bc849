"""Real dialogues as training rows: English topics of chatterbot-corpus (BSD-3), YAML in, JSONL out."""

import json
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

TOPICS = ("ai", "botprofile", "computers", "emotion", "food", "gossip", "greetings", "literature", "money", "movies")
# Here the lines after the first are not turns that follow each other, but answers to it, any of which will do.
_ALTERNATIVES = frozenset({"emotion"})
_LONGEST = 200


def rows(topics: tuple[str, ...] = TOPICS) -> list[dict[str, Any]]:
    """`{messages}` rows of all topics, each dialogue once."""
    folder = files("chatterbot_corpus") / "data" / "english"
    found: dict[str, dict[str, Any]] = {}
    for topic in topics:
        corpus = yaml.safe_load((folder / f"{topic}.yml").read_text(encoding="utf-8"))
        for lines in corpus["conversations"]:
            first, *others = (" ".join(str(line).split()) for line in lines)
            turns = [[first, other] for other in others] if topic in _ALTERNATIVES else [[first, *others]]
            for spoken in turns:
                # A dialogue ends with an answer, and what is learnt is short.
                dialogue = spoken[: len(spoken) // 2 * 2]
                if dialogue and all(0 < len(turn) <= _LONGEST for turn in dialogue):
                    found.setdefault(json.dumps(dialogue), _row(dialogue))
    return list(found.values())


def _row(turns: list[str]) -> dict[str, Any]:
    return {"messages": [{"role": "assistant" if i % 2 else "user", "content": turn} for i, turn in enumerate(turns)]}


def write(folder: Path, held_out: float = 0.05, seed: int = 17) -> tuple[Path, Path]:
    """Writes `train.jsonl` and `held-out.jsonl`; no opening line is in both."""
    dialogues = rows()
    openings = sorted({row["messages"][0]["content"].lower() for row in dialogues})
    random.Random(seed).shuffle(openings)
    kept_back = set(openings[: round(len(openings) * held_out)])
    paths = folder / "train.jsonl", folder / "held-out.jsonl"
    for path, wanted in zip(paths, (False, True), strict=True):
        chosen = [r for r in dialogues if (r["messages"][0]["content"].lower() in kept_back) is wanted]
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in chosen), encoding="utf-8")
    return paths
