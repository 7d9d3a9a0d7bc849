"""A real control plane, and `rlhf` as a person runs it: a process with a terminal or without."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client import Client
from tests.e2e.plane import ControlPlane, control_plane

ROOT = Path(__file__).parents[2]
RLHF = Path(sys.executable).with_name("rlhf")


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane that stays up, runs four jobs at once, and may read the examples."""
    with control_plane(tmp_path_factory.mktemp("client"), LOCAL_JOBS="4", ALLOWED_PATHS=str(ROOT)) as running:
        yield running


@pytest.fixture
def client(plane: ControlPlane) -> Client:
    return plane.client


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Standard output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


class Shell:
    """Runs `rlhf` against one server."""

    def __init__(self, url: str):
        self.url = url

    def environment(self) -> dict[str, str]:
        """What the command finds around it."""
        return {**os.environ, "RLHF_SERVER": self.url, "NO_COLOR": "1", "COLUMNS": "100"}

    def __call__(self, *arguments: str, stdin: str = "") -> Said:
        done = subprocess.run(
            [RLHF, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=self.environment(),
            timeout=300,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """A command that goes on by itself."""
        return subprocess.Popen(
            [RLHF, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self.environment(),
        )


@pytest.fixture
def rlhf(plane: ControlPlane) -> Shell:
    return Shell(plane.url)


def rehearsal(name: str, steps: int = 3, seconds: float = 0.01, **more: Any) -> dict[str, Any]:
    """A job without a model."""
    stage = {"type": "rehearse", "steps": steps, "seconds_per_step": seconds}
    checkpoint = {"every_steps": 5, "grace": "30s"}
    return {"name": name, "stage": {**stage, **more}, "checkpoint": checkpoint}
