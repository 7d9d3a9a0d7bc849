"""The processes of pods, as this machine sees them: containers share its kernel."""

import json
from pathlib import Path

from tests.e2e.plane import wait_until


def launcher(job: str, node: int) -> int:
    """The launcher of one pod of a job."""
    return wait_until(lambda: _found(job, "worker").get(node), what=f"the launcher of node {node} of {job}") or 0


def ranks(job: str) -> dict[int, int]:
    """The rank processes of a job, by rank."""
    return _found(job, "worker.run")


def _found(job: str, module: str) -> dict[int, int]:
    """The processes that run a module for a job: by node for launchers, by rank for ranks."""
    variable = "RANK" if module == "worker.run" else "JOB_COMPLETION_INDEX"
    found = {}
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"--order" not in words or module.encode() not in words:
                continue
            file = words[words.index(b"--order") + 1].decode()
            order = json.loads((process / "root" / file.lstrip("/")).read_text())
            if order["job"] == job:
                pairs = (process / "environ").read_bytes().decode().split("\0")
                variables = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
                found[int(variables.get(variable, "0"))] = int(process.name)
        except (OSError, ValueError):
            continue
    return found
