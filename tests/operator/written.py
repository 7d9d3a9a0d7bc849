"""What an attempt's worker leaves behind: checkpoints and outputs with their manifests, and its last words."""

import json
import os
import signal
from typing import Any

from tests.operator.conftest import Plane
from worker.contract.manifest import MANIFEST, describe


def saved(plane: Plane, job: str, kind: str, name: str, attempt: int = 1) -> dict[str, Any]:
    """A sealed folder in the attempt's own, and what a report says of it."""
    path = f"jobs/{job}/a{attempt}/{kind}/{name}"
    folder = plane.store / path
    folder.mkdir(parents=True)
    (folder / "weights").write_text(name)
    sealed = describe(folder)
    (folder / MANIFEST).write_bytes(sealed.encode())
    return {"path": path, "bytes": sealed.total_bytes, "sha256": sealed.sha256}


def end(plane: Plane, job: str, outputs: list[dict[str, Any]], said: dict[str, Any] | None = None) -> None:
    """Ends the small launcher as one that succeeded with these outputs, or with the words given."""
    folder = plane.data / "attempts" / f"{job}-a1"
    words = said or {"outcome": "succeeded", "reason": "Finished", "exit_code": 0, "step": 3, "outputs": outputs}
    (folder / "exit.json").write_text(json.dumps(words))
    os.kill(int((folder / "lock").read_text()), signal.SIGKILL)
