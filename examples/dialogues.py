"""Real dialogues as training rows: English topics of chatterbot-corpus (BSD-3), YAML in, JSONL out."""

import json
import random
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

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


class Written(NamedTuple):
    """Data files of one set of dialogues."""

    train: Path
    """Rows for sft."""
    held_out: Path
    """The same, of other openings."""
    comparisons: Path
    """Rows for reward: a reply against one from another dialogue."""
    prompts: Path
    """Rows for ppo: the openings."""
    test: Path
    """The same, of the dialogues that are held out."""


def write(folder: Path, held_out: float = 0.28, seed: int = 17, system: str | None = None) -> Written:
    """Writes the dialogues' data files; no opening line is both in what is learnt from and in what is held out.

    `system` opens every dialogue; absent, templates insert what they do.
    """
    dialogues = rows()
    draws = random.Random(seed)
    openings = sorted({_opening(row).lower() for row in dialogues})
    draws.shuffle(openings)
    kept_back = set(openings[: round(len(openings) * held_out)])
    said = [{"role": "system", "content": system}] if system is not None else []
    parts = [[r for r in dialogues if (_opening(r).lower() in kept_back) is wanted] for wanted in (False, True)]
    whole = [[{"messages": [*said, *row["messages"]]} for row in part] for part in parts]
    asked = [[{"prompt": [*said, row["messages"][0]]} for row in _once(part)] for part in parts]
    learnt = parts[0]
    compared = [
        {"prompt": [*said, row["messages"][0]], "chosen": _reply(row), "rejected": other}
        for row in learnt
        if (other := _reply(draws.choice(learnt))) != _reply(row)
    ]
    written = Written(*(folder / f"{name}.jsonl" for name in Written._fields))
    for path, made in zip(written, (*whole, compared, *asked), strict=True):
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in made), encoding="utf-8")
    return written


def _opening(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"])


def _reply(row: dict[str, Any]) -> str:
    return str(row["messages"][1]["content"])


def _once(part: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first dialogue of each opening."""
    return list({_opening(row).lower(): row for row in reversed(part)}.values())[::-1]
