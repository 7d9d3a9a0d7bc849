"""The termination message: how an attempt ended, known even with the control plane down."""

import contextlib
import os
from pathlib import Path

from worker.contract.protocol import Termination

# More than the longest message; blanks after a JSON value mean nothing.
_RESERVED = 64 * 1024


class TerminationFile:
    """Written once, last of all, as a whole."""

    def __init__(self, path: Path):
        self._path = path
        self._draft = path.with_name(f".tmp-{path.name}")

    def reserve(self) -> None:
        """Takes the room now, so that a disk that is full at the end does not hide why."""
        with contextlib.suppress(OSError), self._draft.open("wb") as file:
            file.write(b" " * _RESERVED)
            file.flush()
            os.fsync(file.fileno())

    def write(self, termination: Termination) -> None:
        """Writes the message. Raises OSError."""
        content = termination.model_dump_json(indent=1).encode() + b"\n"
        try:
            # Over the reserved bytes, not in their place: a full disk has no others.
            with self._draft.open("r+b" if self._draft.exists() else "wb") as file:
                file.write(content)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            self._draft.rename(self._path)
        except OSError:
            # Kubernetes mounts the file itself, and lets nothing take its place.
            self._path.write_bytes(content)
