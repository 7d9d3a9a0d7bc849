"""The commands of a page, as they stand but for what its reader must know of his own cluster."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.chart.rendering import ROOT
from tests.cluster.build import program
from tests.kubernetes.fixtures import AnyCluster


def block(page: str, heading: str) -> str:
    """The commands that come first after a heading, or after words at the beginning of a paragraph."""
    whole = (ROOT / page).read_text()
    section = whole.partition(f"\n## {heading}\n")[2].partition("\n## ")[0] or whole.partition(f"\n{heading}")[2]
    found = re.search(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert found, f"{page}: {heading}"
    return found[1]


def replaced(script: str, ours: dict[str, str]) -> str:
    """A script with what is ours in the place of what stands there, each of which it has."""
    for theirs, given in ours.items():
        assert theirs in script, theirs
        script = script.replace(theirs, given)
    return script


def run(cluster: AnyCluster, script: str, seconds: float = 400, **environment: str) -> str:
    """What a script prints, which a shell runs from the root of the repository; nothing of it runs on."""
    programs = [Path(sys.executable).parent, program("kubectl").parent, program("helm").parent]
    done = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", f"trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n{script}"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        env={
            **os.environ, "PATH": ":".join([*map(str, programs), os.environ["PATH"]]),
            "KUBECONFIG": str(cluster.kubeconfig), **environment,
        },
    )  # fmt: skip
    try:
        said, _ = done.communicate(timeout=seconds)
    finally:
        if done.poll() is None:
            os.killpg(done.pid, signal.SIGKILL)
    assert done.returncode == 0, said
    return said
