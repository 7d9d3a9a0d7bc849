"""`rlhf serve` and `rlhf chat`: the installed program, wherever one stands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from client.terminal import replace_process
from tests.client.conftest import RLHF


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A working directory with a person's own `api` and `worker` in it."""
    for package in ("api", "worker"):
        (tmp_path / "work" / package).mkdir(parents=True)
        for module in ("__init__", "__main__", "chat"):
            (tmp_path / "work" / package / f"{module}.py").write_text("raise SystemExit('this is not ours')")
    return tmp_path / "work"


def test_a_folder_that_is_called_like_ours_is_not_run(elsewhere: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "STORE", "HOST")}
    with subprocess.Popen(
        [RLHF, "serve", "--port", "0"], cwd=elsewhere, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        process.terminate()
        _, complaint = process.communicate(timeout=60)
    assert b" listens on " in said, complaint.decode()
    # Relative paths stay those of the place where one stands.
    assert (elsewhere / "rlhf-data" / "rlhf.db").is_file()


def test_a_module_of_ours_is_found_from_everywhere(elsewhere: Path) -> None:
    call = f"import sys, {replace_process.__module__} as t; t.replace_process(['-m', 'worker.chat', '--help'])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", call], cwd=elsewhere, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
