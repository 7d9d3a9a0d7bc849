"""What an attempt writes bit by bit: its spool, logs and curves, brought into the store every so often and at the end.

So the operator can read them of an attempt that is dead. Nothing here may end a run: what cannot be put now is put
later, or is lost.
"""

import threading
from collections.abc import Collection
from pathlib import Path

from worker.contract.manifest import MANIFEST
from worker.logs import log
from worker.storage import ObjectStore

_LOOSE = ("spool", "log", "tensorboard")
# Of a log, its end: what is kept of it anyway.
_LOG_TAIL = 2**20


class Loose:
    """The loose files of one attempt on this node."""

    def __init__(self, store: ObjectStore, folder: Path, attempt: str, converted: set[str]):
        """`attempt`: its folder's path in the store. `converted`: models that need not be put there again."""
        self._store, self._folder, self._attempt, self._converted = store, folder, attempt, converted
        self._there: dict[str, tuple[int, int]] = {}
        self._lock, self._models = threading.Lock(), threading.Lock()
        self._told = False

    def sync(self) -> None:
        """Puts what has changed, and removes what is gone here; models too. What cannot be done now is done later."""
        try:
            self.put(*_LOOSE)
            with self._models:
                self._put_converted()
            self._told = False
        except (OSError, ValueError) as error:
            if not self._told:
                self._told = True
                said = getattr(error, "strerror", None) or error
                log(f"logs and spool are not in the store as they are here: {said}")

    def put(self, *kinds: str) -> None:
        """Puts what has changed of these kinds, and removes what is gone here. Raises OSError."""
        with self._lock:
            self._sync(kinds)

    def _sync(self, kinds: Collection[str]) -> None:
        here: dict[str, tuple[int, int]] = {}
        own = self._folder / self._attempt
        for kind in kinds:
            for path in sorted((own / kind).rglob("*")):
                name = path.relative_to(own).as_posix()
                try:
                    if path.name.startswith(".tmp-") or not path.is_file():
                        continue
                    found = path.stat()
                    start = _begins(found.st_size) if kind == "log" else 0
                    if start:
                        # As the operator calls what it keeps of a long one.
                        name = f"{name.removesuffix('.log')}.from-{start}.log"
                    here[name] = (found.st_size, found.st_mtime_ns)
                    if self._there.get(name) == here[name]:
                        continue
                    content = _read(path, start, found.st_size)
                except FileNotFoundError:
                    # Delivered, and removed, just now.
                    here.pop(name, None)
                    continue
                self._store.put_bytes(f"{self._attempt}/{name}", content)
                self._there[name] = here[name]
        gone = [name for name in self._there if name.split("/")[0] in kinds and name not in here]
        self._store.remove_objects(f"{self._attempt}/{name}" for name in gone)
        for name in gone:
            del self._there[name]

    def _put_converted(self) -> None:
        """Models that were converted here need not be converted again elsewhere."""
        for made in (self._folder / "cache" / "models").glob(f"*/{MANIFEST}"):
            name = made.parent.name
            if name not in self._converted:
                self._store.put_folder(made.parent, f"cache/models/{name}")
                self._converted.add(name)


def _begins(size: int) -> int:
    """Where what is put of a log begins. Not at another byte each time: it is a part of its name."""
    return max(0, size // _LOG_TAIL - 1) * _LOG_TAIL


def _read(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)
