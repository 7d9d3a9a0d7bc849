"""The store's folder: where files, models and kept logs lie, and the paths that may not leave it."""

import contextlib
import os
import shutil
import time
from pathlib import Path

_TEMPORARY = ".tmp-"
_LEFTOVER_AGE = 24 * 3600.0


class Store:
    """Paths inside the store. Everything is synchronous: call it in a thread where it reads or removes much."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Makes the folders."""
        (self.root / "files").mkdir(parents=True, exist_ok=True)

    def temporary_file(self, id: str) -> Path:
        """Where a data file lies until its upload is committed, and for an instant after that.

        Also what says of a file that is being deleted that its bytes may outlive its row.
        """
        return self.root / "files" / f"{_TEMPORARY}{id}"

    def unsettled_files(self) -> list[str]:
        """The ids of data files whose upload or deletion was cut off.

        Not a young one's: another replica may be at it.
        """
        found = []
        for path in (self.root / "files").glob(f"{_TEMPORARY}*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _LEFTOVER_AGE:
                    found.append(path.name.removeprefix(_TEMPORARY))
        return found

    def inside(self, path: str) -> Path:
        """The absolute path of `path`, which is relative to the store. Raises ValueError if it leads out of it."""
        root = self.root.resolve()
        full = (root / path).resolve()
        if not full.is_relative_to(root) or full == root:
            raise ValueError(f"{path!r} does not lie in the store")
        return full

    def remove(self, path: str) -> None:
        """Removes a file or a folder and all in it, if it is there."""
        full = self.inside(path)
        if full.is_dir():
            shutil.rmtree(full, ignore_errors=True)
        else:
            full.unlink(missing_ok=True)

    def kept_logs(self, job: str, attempt: int) -> Path:
        """The folder of the logs of an attempt that is over."""
        return self.root / "logs" / job / f"a{attempt}"

    def live_logs(self, job: str, attempt: int) -> Path:
        """Where the ranks of an attempt on a cluster write their logs."""
        return self.root / "jobs" / job / f"a{attempt}" / "log"

    def kept_log(self, job: str, attempt: int, rank: int, start: int) -> Path:
        """Where the operator keeps a rank's log; of a long one only what it said from byte `start` on."""
        begins = f".from-{start}" if start else ""
        return self.kept_logs(job, attempt) / f"rank-{rank}{begins}.log"


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
