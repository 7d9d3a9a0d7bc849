"""The termination message: how an attempt ended, known even with the control plane down."""

import contextlib
import os
from pathlib import Path

from worker.contract.protocol import Termination

# More than the longest message; blanks after a JSON value mean nothing.
_RESERVED = 64 * 1024
# Where there is little room, the message keeps these characters before outputs are left out for it.
_KEPT = 300
_CUT = " […]"


class TerminationFile:
    """Written once, last of all, as a whole."""

    def __init__(self, path: Path, limit: int | None = None):
        """`limit`: the bytes that are read of it, at most. Such a file is Kubernetes' own, mounted by itself: nothing
        may take its place, and there is nowhere beside it to write."""
        self._path = path
        self._limit = limit
        self._draft = path.with_name(f".tmp-{path.name}")

    def reserve(self) -> None:
        """Takes the room now, so that a disk that is full at the end does not hide why."""
        if self._limit is not None:
            return
        with contextlib.suppress(OSError), self._draft.open("wb") as file:
            file.write(b" " * _RESERVED)
            file.flush()
            os.fsync(file.fileno())

    def write(self, termination: Termination) -> None:
        """Writes the message, shortened to the limit. Raises OSError."""
        if self._limit is not None:
            self._path.write_bytes(fitted(termination, self._limit))
            return
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
            # A full disk that had no room to reserve either may still have some in the file itself.
            self._path.write_bytes(content)


def fitted(termination: Termination, limit: int) -> bytes:
    """The message as JSON of `limit` bytes at most: its sentence is shortened first, then outputs are left out.

    Outputs are also in the last report and in the store; how the attempt ended may be nowhere else.
    """
    content = _shortened(termination, limit, _KEPT)
    while len(content) > limit and termination.outputs:
        termination = termination.model_copy(update={"outputs": termination.outputs[:-1]})
        content = _shortened(termination, limit, _KEPT)
    return content if len(content) <= limit else _shortened(termination, limit, 0)


def _shortened(termination: Termination, limit: int, kept: int) -> bytes:
    """With as much of the sentence as fits; with its first `kept` characters, where not even these fit."""
    whole = _compact(termination)
    if len(whole) <= limit:
        return whole
    fits, too_long = min(kept, len(termination.message)), len(termination.message)
    while too_long - fits > 1:
        half = (fits + too_long) // 2
        if len(_compact(termination, half)) <= limit:
            fits = half
        else:
            too_long = half
    return _compact(termination, fits)


def _compact(termination: Termination, characters: int | None = None) -> bytes:
    if characters is not None and characters < len(termination.message):
        cut = termination.message[:characters] + _CUT
        termination = termination.model_copy(update={"message": cut})
    return termination.model_dump_json(exclude_none=True).encode()
