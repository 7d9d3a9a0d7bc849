"""What the tests of real attempts share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.attempts import Attempt
from tests.process.listener import Listener


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    listening = Listener(tmp_path / "worker-url")
    listening.start()
    yield listening
    listening.stop()


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Callable[..., Attempt]]:
    """Makes attempts at one job; whatever is left of them at the end is killed."""
    made: list[Attempt] = []

    def make(number: int = 1, **given: Any) -> Attempt:
        made.append(Attempt(tmp_path, number, **given))
        return made[-1]

    yield make
    for one in made:
        one.kill_group()
