"""The store as a folder that the control plane and the workers see, read and written where it lies."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, ParamSpec, TypeVar

from api.operator.folder import write
from api.stores import TEMPORARY, Stat, Upload
from api.weights import Known, Weights
from worker.contract import manifest
from worker.contract.manifest import Manifest

_CHUNK = 2**20
P = ParamSpec("P")
T = TypeVar("T")


class FolderStore:
    """See `Store`."""

    memory = 0.0

    def __init__(self, root: Path, url: str | None = None) -> None:
        self.root = root
        self.url = url or root.as_uri()
        self._weights = Weights()

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Store`."""
        return await asyncio.to_thread(call, *args, **kwargs)

    def prepare(self) -> None:
        """Makes the folders."""
        (self.root / "files").mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """There is nothing to end."""

    def upload(self, id: str) -> Upload:
        """See `Store`."""
        return _Upload(self.root / "files" / f"{TEMPORARY}{id}", self.root / "files" / f"{id}.jsonl")

    def unsettle(self, mark: str, content: str = "") -> None:
        """See `Store`."""
        path = self.inside(mark)
        # On a full disk it may fail, and deleting is what makes room there.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    def inside(self, path: str) -> Path:
        """The absolute path of `path`, which is relative to the store. Raises ValueError if it leads out of it."""
        root = self.root.resolve()
        full = (root / path).resolve()
        if not full.is_relative_to(root) or full == root:
            raise ValueError(f"{path!r} does not lie in the store")
        return full

    def files(self, folder: str, beginning: str = "") -> dict[str, Stat]:
        """See `Store`."""
        here, found = self.inside(folder), {}
        for path in here.rglob("*"):
            name = path.relative_to(here).as_posix()
            # Others remove, too.
            with contextlib.suppress(FileNotFoundError):
                if name.startswith(beginning) and path.is_file():
                    found[name] = _stat(path)
        return found

    def names(self, folder: str) -> list[str]:
        """See `Store`."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(path.name for path in self.inside(folder).iterdir())
        return []

    def stat(self, path: str) -> Stat | None:
        """See `Store`."""
        full = self.inside(path)
        return _stat(full) if full.is_file() else None

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        """See `Store`."""
        with self.inside(path).open("rb") as file:
            file.seek(start)
            return file.read(-1 if end is None else max(0, end - start))

    def chunks(self, path: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `Store`."""
        with self.inside(path).open("rb") as file:
            file.seek(start)
            while chunk := file.read(_CHUNK if end is None else min(_CHUNK, end - file.tell())):
                yield chunk

    def lines(self, path: str) -> Iterator[bytes]:
        """See `Store`."""
        with self.inside(path).open("rb") as file:
            yield from file

    def write(self, path: str, content: bytes) -> None:
        """See `Store`."""
        full = self.inside(path)
        full.parent.mkdir(parents=True, exist_ok=True)
        write(full, content)

    def remove(self, path: str) -> None:
        """See `Store`: a folder goes out of sight in one step, then file by file."""
        full = self.inside(path)
        if not full.is_dir():
            full.unlink(missing_ok=True)
            return
        gone = full.with_name(f"{TEMPORARY}removed-{full.name}")
        shutil.rmtree(gone, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            full.replace(gone)
            shutil.rmtree(gone)

    def remove_unfinished(self, folder: str) -> None:
        """See `Store`."""
        for path in list(self.inside(folder).rglob(f"{TEMPORARY}*")):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def remove_parts(self, older_than: timedelta) -> None:
        """What was sent of a file lies under its mark, and goes with it."""

    def remove_job(self, job: str, kept: list[str]) -> None:
        """See `Store`."""
        keep = {self.inside(path) for path in kept}
        folder = self.inside(f"jobs/{job}")
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            _remove_but(folder, keep)
        shutil.rmtree(self.inside(f"logs/{job}"), ignore_errors=True)

    def manifest(self, folder: str) -> Manifest:
        """See `Store`."""
        return manifest.read(self.inside(folder))

    def verify(self, folder: str) -> Manifest:
        """See `Store`."""
        return manifest.verify(self.inside(folder))

    @contextlib.contextmanager
    def described(self, folder: str) -> Iterator[Path]:
        """The folder itself."""
        yield self.inside(folder)

    def look(self, folder: str, *, tokenizer_only: bool = False) -> Known:
        """See `Store`."""
        return self._weights.look(self.inside(folder), tokenizer_only=tokenizer_only)

    def place(self, path: str) -> str:
        """The absolute path."""
        return str(self.inside(path))

    def lies_in(self, path: str, folder: str) -> bool:
        """See `Store`."""
        full, around = (self.root / path).resolve(), (self.root / folder).resolve()
        return full.is_relative_to(around) and full != around


class _Upload:
    """See `Upload`. Until it is settled it has its temporary name, also once it is in its place."""

    def __init__(self, temporary: Path, final: Path) -> None:
        self._temporary, self._final = temporary, final
        self._kept = False
        self._file: IO[bytes] = temporary.open("xb")

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def end(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def keep(self) -> None:
        self._final.hardlink_to(self._temporary)
        _sync(self._final.parent)
        self._kept = True

    def settle(self) -> None:
        self._temporary.unlink(missing_ok=True)

    def discard(self) -> None:
        # On a full disk it has bytes that cannot be written any more, and says so once more.
        with contextlib.suppress(OSError):
            self._file.close()
        if not self._kept:
            self._temporary.unlink(missing_ok=True)


def _stat(path: Path) -> Stat:
    found = path.stat()
    return Stat(found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))


def _sync(folder: Path) -> None:
    """Makes renames in `folder` last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_but(folder: Path, keep: set[Path]) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            if any(kept.is_relative_to(path) for kept in keep):
                _remove_but(path, keep)
            else:
                shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
