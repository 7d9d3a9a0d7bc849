"""The load test that a person reads runs, at a hundredth of its sizes, and what it asks for holds then."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str, seconds: int) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=seconds,
        check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_load_test_loses_nothing_at_a_hundredth_of_its_sizes() -> None:
    # How long things take is measured, and not asserted: others may use this machine.
    said = run("--small", "--untimed", seconds=120)
    for what in ("points stored", "events stored", "never told", "its highest point is there", "errors"):
        assert what in said


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_the_load_test_holds_at_its_sizes() -> None:
    run(seconds=800)
