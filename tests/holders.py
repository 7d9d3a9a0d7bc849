"""Who holds a lock: the processes of attempts are known by theirs."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def holders(locks: Iterable[Path]) -> list[int]:
    """The other processes that have any of these files open."""
    wanted = {str(path.resolve()) for path in locks}
    others = (p for p in Path("/proc").iterdir() if p.name.isdigit() and int(p.name) != os.getpid())
    return sorted(int(process.name) for process in others if not wanted.isdisjoint(_open_files(process)))


def _open_files(process: Path) -> Iterator[str]:
    # A file that it closes meanwhile hides no other.
    with contextlib.suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(descriptor.readlink())
