"""How things read."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from client.commands.metrics import plot
from client.commands.picture import event_line, sparkline
from client.problems import FieldProblem, Problem
from client.records import Event, Point
from client.terminal import as_json, duration, escape, fail, plain, size, why

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (864000, "10 d")],
)
def test_durations_have_the_largest_unit_that_says_enough(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (135_000_000, "135 MB")])
def test_sizes_read_easily(count: int, text: str) -> None:
    assert size(count) == text


def test_a_sparkline_goes_from_the_lowest_to_the_highest() -> None:
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([8.0] * 100 + [1.0] * 100, 4) == "██▁▁"
    assert sparkline([3.0, 3.0], 8) == "▁▁"
    assert sparkline([3.0], 8) == ""


def test_a_plot_has_its_name_its_size_and_its_newest_value() -> None:
    points = [
        Point.model_validate(
            {"name": "train/loss", "step": n, "value": 4 - n / 10, "attempt": 1, "at": "2026-01-01T00:00:00Z", "id": n}
        )
        for n in range(1, 31)
    ]
    lines = plot("train/loss", points, 72, 12).splitlines()
    assert len(lines) == 12
    assert max(map(len, lines)) <= 72
    assert "train/loss" in lines[0]
    assert "last 1 at 30" in lines[0]
    assert "\x1b" not in "".join(lines)


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = "torch transformers deepspeed fastapi sqlalchemy"
    code = f"import client.cli, sys; sys.exit(' '.join(m for m in {heavy.split()!r} if m in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("detail", ["must be at least 1", "stage.steps: must be at least 1"])
def test_a_single_problem_is_told_once(detail: str, capsys: pytest.CaptureFixture[str]) -> None:
    problem = Problem(422, "Unprocessable Content", detail, (FieldProblem("stage.steps", "must be at least 1"),))
    assert str(problem) == "stage.steps: must be at least 1"
    with pytest.raises(SystemExit):
        fail(problem)
    said = capsys.readouterr().err
    assert "Unprocessable Content" in said
    assert said.count("must be at least 1") == 1


HOSTILE = "a\x1b]0;title\x07b\x9b2Jc\r\x08\x7f\u200d"


def test_what_a_terminal_would_obey_is_dropped_from_others_words() -> None:
    assert plain(HOSTILE) == "a]0;titleb2Jc\u200d"
    assert plain("one\n\ttwo") == "one\n\ttwo"
    event = Event(number=1, at=datetime.now(UTC), level="info", source="worker", type=HOSTILE, message=HOSTILE)
    for shown in (escape(HOSTILE), why(HOSTILE, HOSTILE), event_line(event)):
        assert not set(shown) & set("\x1b\x07\x9b\r\x08\x7f")


def test_json_keeps_every_character_and_none_that_a_terminal_would_obey() -> None:
    text = as_json([HOSTILE])
    assert json.loads(text) == [HOSTILE]
    assert not set(text) & set("\x1b\x07\x9b\r\x08\x7f")
