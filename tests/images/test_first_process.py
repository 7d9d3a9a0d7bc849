"""A container's first process has no default for signals: what it does not handle, it does not hear."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.plane import wait_until
from tests.images.builder import REPOSITORY


@pytest.mark.parametrize("command", [[], ["migrate"]])
def test_a_container_that_still_starts_ends_when_asked(tmp_path: Path, command: list[str]) -> None:
    here = tmp_path / "here"
    # In the place of the library that is imported first: the start stands still.
    (tmp_path / "uvloop.py").write_text(f"import pathlib, time\npathlib.Path({str(here)!r}).touch()\ntime.sleep(300)\n")
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-m", "api", "--data", str(tmp_path), *command],
        env={"PYTHONPATH": f"{tmp_path}:{REPOSITORY}", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        cwd=REPOSITORY,
    )
    try:
        wait_until(here.exists, what="the start")
        (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert Path(f"/proc/{first}/status").read_text().split("NSpid:")[1].splitlines()[0].split()[-1] == "1"
        subprocess.run(["kill", f"-{signal.SIGTERM.value}", first], check=True)
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
