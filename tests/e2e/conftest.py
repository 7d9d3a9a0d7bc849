"""One control plane for all tests that do not kill it, and the small jobs that they run."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.plane import ControlPlane, control_plane

TALKS = [
    ("What is your name?", "I am called Ada."),
    ("Where do you live?", "In a small house by the sea, with a garden."),
    ("Do you like rain?", "Yes."),
    ("Tell me a story.", "Once there was a fox who counted stars until the morning came, and then it slept."),
    ("What is two and two?", "Four."),
    ("Good night!", "Sleep well, and until tomorrow."),
]


@pytest.fixture(scope="session")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 short dialogues of uneven lengths, as a JSONL file."""
    path = tmp_path_factory.mktemp("rows") / "talks.jsonl"
    with path.open("w") as file:
        for index in range(24):
            question, answer = TALKS[index % len(TALKS)]
            turns = [{"role": "user", "content": f"{question} ({index})"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns * (1 + index % 2)}) + "\n")
    return path


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane that stays up."""
    with control_plane(tmp_path_factory.mktemp("plane")) as running:
        yield running
