"""`make install`: what it says of a machine that lacks something."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.conftest import ROOT

pytestmark = pytest.mark.quick
# A Python that lacks what the test says, and that makes no environment: the installation ends there.
PYTHON = """#!/bin/sh
case "$*" in
  *{lacks}*) exit 1 ;;
  *"-m venv"*) exit 77 ;;
esac
exec {real} "$@"
"""


def install(folder: Path, lacks: str) -> "subprocess.CompletedProcess[str]":
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "install.sh", folder / "scripts")
    python = folder / "python"
    python.write_text(PYTHON.format(lacks=lacks, real=sys.executable))
    python.chmod(0o755)
    return subprocess.run(
        [folder / "scripts" / "install.sh"],
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_headers_that_nothing_is_compiled_with_are_missed_and_do_not_stop_it(tmp_path: Path) -> None:
    done = install(tmp_path, "Python.h")
    assert "Python's headers are not here" in done.stderr
    assert done.returncode == 77, done.stderr


def test_a_python_without_environments_stops_it_with_what_to_install(tmp_path: Path) -> None:
    done = install(tmp_path, "ensurepip")
    assert "apt-get install python3-venv" in done.stderr
    assert done.returncode == 1
