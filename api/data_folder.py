"""The folder that holds all that one machine keeps: made, held by one control plane, written whole."""

import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path
from typing import IO


class CannotStart(Exception):
    """Why the control plane does not start, in a sentence."""


@contextlib.contextmanager
def only_one(path: Path) -> Generator[None, None, None]:
    """Holds the data folder's lock. Raises CannotStart, and names who holds it."""
    try:
        opened = path.open("a+")
    except OSError as error:
        raise CannotStart(
            f"the data folder {path.parent} cannot be used: its file `lock` cannot be opened: {error.strerror}"
        ) from None
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise CannotStart(
                f"the data folder {path.parent} is in use by process {holder}; stop that one, or use another --data"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def make_folder(folder: Path) -> None:
    """Makes the data folder, where it is missing. Raises CannotStart."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"the data folder {folder} cannot be made: {error.strerror}") from None


def write_whole(path: Path, url: str) -> None:
    """Workers may read at any moment: they see the old address or the new one, whole."""
    temporary = path.with_name(f".tmp-{path.name}")
    file: IO[str]
    with temporary.open("w") as file:
        file.write(url)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
