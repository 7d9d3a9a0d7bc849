"""Real dialogues as training rows: English topics of chatterbot-corpus (BSD-3), YAML in, JSONL out."""

import json
import random
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml

TOPICS = ("ai", "botprofile", "computers", "emotion", "food", "gossip", "greetings", "literature", "money", "movies")
COMPARISONS, HELD_OUT_COMPARISONS = 192, 64
"""The most of a file: a reward model learns of so many in a minute or two."""
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
    """Data files of one set of dialogues. What is held out shares no opening with what is learnt from."""

    dialogues: Path
    """Rows for sft."""
    comparisons: Path
    """Rows for reward: a reply against one from another topic."""
    prompts: Path
    """Rows for ppo: the openings."""
    held_out_comparisons: Path
    held_out_prompts: Path


def write(folder: Path, system: str, held_out: float = 0.28, seed: int = 17) -> Written:
    """Writes the dialogues' data files; `system` opens every dialogue, `held_out` of the openings are kept back."""
    draws = random.Random(seed)
    every = rows()
    openings = sorted({_opening(row).lower() for row in every})
    draws.shuffle(openings)
    kept_back = set(openings[: round(len(openings) * held_out)])
    learnt, kept = ([r for r in every if (_opening(r).lower() in kept_back) is wanted] for wanted in (False, True))
    said = [{"role": "system", "content": system}]
    made = Written(*(folder / f"{name}.jsonl" for name in Written._fields))
    save(made.dialogues, [{"messages": [*said, *row["messages"]]} for row in learnt])
    for part, compared, count, asked in (
        (learnt, made.comparisons, COMPARISONS, made.prompts),
        (kept, made.held_out_comparisons, HELD_OUT_COMPARISONS, made.held_out_prompts),
    ):
        save(compared, _compared(part, said, draws)[:count])
        save(asked, [{"prompt": [*said, row["messages"][0]]} for row in _once(part)])
    return made


def _compared(part: list[dict[str, Any]], said: list[dict[str, str]], draws: random.Random) -> list[dict[str, Any]]:
    """Each reply against one from another topic, in a new order."""
    topics = {_opening(row).lower(): topic for topic in TOPICS for row in rows((topic,))}
    replies: dict[str, list[str]] = {}
    for row in part:
        replies.setdefault(topics[_opening(row).lower()], []).append(_reply(row))
    compared = []
    for row in part:
        elsewhere = [topic for topic in replies if topic != topics[_opening(row).lower()]]
        other = draws.choice(replies[draws.choice(elsewhere)])
        compared.append({"prompt": [*said, row["messages"][0]], "chosen": _reply(row), "rejected": other})
    return draws.sample(compared, len(compared))


def save(path: Path, made: list[dict[str, Any]]) -> None:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")


def _opening(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"])


def _reply(row: dict[str, Any]) -> str:
    return str(row["messages"][1]["content"])


def _once(part: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first dialogue of each opening."""
    return list({_opening(row).lower(): row for row in reversed(part)}.values())[::-1]
