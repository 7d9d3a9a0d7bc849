"""A head start: what an attempt reads is hashed on another core while the slow imports run.

Nothing is read before the attempt may begin. Each answer that was begun here is given out once: whoever asks a second
time, or for anything else, has it computed then.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from worker.contract import manifest
from worker.contract.manifest import Damaged
from worker.contract.order import Input, Order
from worker.errors import BadData
from worker.paths import local_path, store_path

T = TypeVar("T")

_hashes: dict[Path, Future[str]] = {}
_whole: dict[Path, Future[bool]] = {}


def begin(order: Order, wait_for_start: Callable[[], None]) -> None:
    """Hashes the order's inputs, and the converted models among them, in a thread once `wait_for_start` returns."""
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
    started = thread.submit(wait_for_start)
    cache = models_cache(store_path(order.store))
    for source in order.inputs.values():
        if source.kind != "hub" and (path := _local(source)) is not None:
            _hashes[path] = thread.submit(_after, started, _hash_of, path)
            folder = cache / source.sha256
            _whole[folder] = thread.submit(_after, started, _is_whole, folder)


def tree_hash(path: Path) -> str:
    """`manifest.tree_hash` of a path. Raises OSError."""
    ahead = _hashes.pop(path, None)
    return _hash_of(path) if ahead is None else ahead.result()


def whole(folder: Path) -> bool:
    """Whether a folder is there and is all that its manifest says."""
    ahead = _whole.pop(folder, None)
    return _is_whole(folder) if ahead is None else ahead.result()


def models_cache(store: Path) -> Path:
    """Where a store keeps models that were converted, each in a folder named by the hash of what it was made from."""
    return store / "cache" / "models"


def _after(started: Future[None], look: Callable[[Path], T], path: Path) -> T:
    started.result()  # raises what kept the attempt from starting: then nothing is read
    return look(path)


def _hash_of(path: Path) -> str:
    path.stat()  # of what is not there, the hash would be an empty folder's
    return manifest.tree_hash(path)


def _local(source: Input) -> Path | None:
    """Where an input lies on this machine; None where it cannot: whoever opens it will say so."""
    try:
        return local_path(source.location)
    except BadData:
        return None


def _is_whole(folder: Path) -> bool:
    try:
        manifest.verify(folder)
    except Damaged:
        return False
    return True
