"""The store as a bucket of S3: its objects are read and written over the network, and nothing of it lies here."""

import asyncio
import contextlib
import contextvars
import math
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import ParamSpec, TypeVar

from api.stores import TEMPORARY, Stat, Upload
from api.weights import Config, Known, inspect
from worker.contract.manifest import MANIFEST, Damaged, Manifest
from worker.storage import Full, NotThere, ObjectStore, Options

P = ParamSpec("P")
T = TypeVar("T")
_MIB = 2**20
# The smallest that a part may be: so much of an upload is in memory while it is sent, once a thread.
_PART = 5 * _MIB
_CHUNK = _MIB
# Whatever waits for the bucket at the same time; what else runs in threads has its own.
_THREADS = 16
# Seconds. Whoever asks waits for the answer, and is told to come again.
_PATIENCE, _CONNECT, _READ = 8.0, 3.0, 10.0
# Seconds. A sweep takes uploads with an old mark for dead: of one that has lasted this long it is made anew at the end.
_LONG = 3600.0
# A model's files up to this size are fetched to tell what it is; larger ones than any configuration are not.
_DESCRIPTION = 4 * _MIB
_REMEMBERED = 256


class BucketStore:
    """See `Store`."""

    memory = 5.0

    def __init__(self, url: str) -> None:
        self._closed = threading.Event()
        options = Options(
            part_bytes=_PART,
            at_once=_THREADS,
            patience=_PATIENCE,
            given_up=self._closed.is_set,
            connect_timeout=_CONNECT,
            read_timeout=_READ,
        )
        self.objects = ObjectStore(url, options)
        self.url = self.objects.url
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="store")
        self._known: OrderedDict[tuple[str, str], Known] = OrderedDict()
        self._lock = threading.Lock()

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Store`."""
        context = contextvars.copy_context()
        bound = partial(context.run, call, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, bound)

    def prepare(self) -> None:
        """Looks whether it can be listed, written, read and removed from."""
        self.objects.check()

    def close(self) -> None:
        """Nothing is tried again from now on."""
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def upload(self, id: str) -> Upload:
        """See `Store`."""
        return _Upload(self.objects, f"files/{TEMPORARY}{id}", f"files/{id}.jsonl")

    def unsettle(self, mark: str, content: str = "") -> None:
        """See `Store`."""
        # Deleting is what makes room. Of one that is away it cannot be known later what was to be removed.
        with contextlib.suppress(Full):
            self.objects.put_bytes(mark, content.encode())

    def files(self, folder: str, beginning: str = "") -> dict[str, Stat]:
        """See `Store`."""
        return {
            entry.path.removeprefix(f"{folder}/"): Stat(entry.bytes, entry.modified)
            for entry in self.objects.list(folder, beginning)
        }

    def names(self, folder: str) -> list[str]:
        """See `Store`."""
        return sorted({path.partition("/")[0] for path in self.files(folder)})

    def stat(self, path: str) -> Stat | None:
        """See `Store`."""
        try:
            found = self.objects.stat(path)
        except NotThere:
            return None
        return Stat(found.bytes, found.modified)

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        """See `Store`."""
        return self.objects.read(path, start, end)

    def chunks(self, path: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `Store`: each in a call of its own, so that whoever reads slowly holds no connection."""
        end = self.objects.size(path) if end is None else end
        while start < end and (chunk := self.objects.read(path, start, min(start + _CHUNK, end))):
            start += len(chunk)
            yield chunk

    def lines(self, path: str) -> Iterator[bytes]:
        """See `Store`."""
        rest = b""
        for chunk in self.chunks(path):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line + b"\n"
        if rest:
            yield rest

    def write(self, path: str, content: bytes) -> None:
        """See `Store`."""
        self.objects.put_bytes(path, content)

    def remove(self, path: str) -> None:
        """See `Store`."""
        # As a folder has it: what a worker has said of its checkpoints may have a slash too many.
        self.objects.remove(str(PurePosixPath(path)))

    def remove_unfinished(self, folder: str) -> None:
        """See `Store`: parts of files, and what was to become a checkpoint or an output and has no manifest."""
        self.objects.abort_uploads(folder)
        for kind in ("checkpoints", "outputs"):
            there = self.files(f"{folder}/{kind}")
            whole = {path.partition("/")[0] for path in there if path.count("/") == 1 and path.endswith(f"/{MANIFEST}")}
            self.objects.remove_objects(
                f"{folder}/{kind}/{path}" for path in there if path.partition("/")[0] not in whole
            )

    def remove_parts(self, older_than: timedelta) -> None:
        """See `Store`."""
        for folder in ("files", "cache"):
            self.objects.abort_uploads(folder, older_than)

    def remove_job(self, job: str, kept: list[str]) -> None:
        """See `Store`."""
        for folder in (f"jobs/{job}", f"logs/{job}"):
            gone = [e.path for e in self.objects.list(folder) if not any(_lies_in(e.path, keep) for keep in kept)]
            # Manifests first: what is half gone is not taken for whole.
            self.objects.remove_objects(sorted(gone, key=lambda path: not path.endswith(f"/{MANIFEST}")))
            self.objects.abort_uploads(folder)

    def manifest(self, folder: str) -> Manifest:
        """See `Store`."""
        return self.objects.manifest(folder)

    def verify(self, folder: str) -> Manifest:
        """See `Store`: by the hashes that the objects carry, which the store itself checked as they came."""
        described = self._whole(folder)
        name = PurePosixPath(folder).name
        for file, entry in described.files.items():
            try:
                carried = self.objects.stat(f"{folder}/{file}").sha256
            except NotThere:
                raise Damaged(f"{name}/{file} is missing") from None
            if carried != entry.sha256:
                raise Damaged(f"{name}/{file} does not have its hash")
        return described

    @contextlib.contextmanager
    def described(self, folder: str) -> Iterator[Path]:
        """See `Store`: its configuration is fetched, its weights are empty files."""
        with self._description(folder, self._whole(folder)) as here:
            yield here

    def look(self, folder: str, *, tokenizer_only: bool = False) -> Known:
        """See `Store`. Its hash is that of its manifest: the bytes were checked when they came."""
        whole = self._whole(folder)
        with self._lock:
            if (known := self._known.get((folder, whole.sha256))) is not None:
                self._known.move_to_end((folder, whole.sha256))
                return known
        with self._description(folder, whole) as here:
            known = Known(whole.sha256, Config(None, None) if tokenizer_only else inspect(here))
        if not tokenizer_only:
            with self._lock:
                self._known[folder, whole.sha256] = known
                while len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
        return known

    def place(self, path: str) -> str:
        """Its URL."""
        return f"{self.url}/{path}"

    def lies_in(self, path: str, folder: str) -> bool:
        """See `Store`."""
        try:
            self.objects.place.key(path)
        except ValueError:
            return False
        return _lies_in(path, folder)

    def _whole(self, folder: str) -> Manifest:
        """The manifest of a folder whose objects are all there, in their sizes. Raises Damaged."""
        described, there = self.objects.manifest(folder), self.files(folder)
        name = PurePosixPath(folder).name
        for file, entry in described.files.items():
            if (found := there.get(file)) is None:
                raise Damaged(f"{name}/{file} is missing")
            if found.bytes != entry.bytes:
                raise Damaged(f"{name}/{file} has {found.bytes} bytes, not {entry.bytes}")
        return described

    @contextlib.contextmanager
    def _description(self, folder: str, whole: Manifest) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="rlhf-model-") as made:
            here = Path(made)
            for file, entry in whole.files.items():
                local = here / file
                local.parent.mkdir(parents=True, exist_ok=True)
                told = file.endswith(".json") and entry.bytes <= _DESCRIPTION
                local.write_bytes(self.objects.read(f"{folder}/{file}", 0, entry.bytes) if told else b"")
            yield here


class _Upload:
    """See `Upload`. The next part waits in a file: of an upload that comes slowly nothing is in memory."""

    def __init__(self, objects: ObjectStore, mark: str, path: str) -> None:
        self._objects, self._mark, self._path = objects, mark, path
        self._sent = objects.upload(path)
        self._waiting = tempfile.TemporaryFile()  # noqa: SIM115
        self._begun = self._kept = False
        self._marked_at = -math.inf

    def write(self, data: bytes) -> None:
        self._waiting.write(data)
        if self._waiting.tell() >= _PART:
            self._send()

    def end(self) -> None:
        # In its place before the transaction, which is not held up with it: the mark says that there is no row yet.
        self._send()
        if time.monotonic() - self._marked_at > _LONG:
            self._put_mark()
        self._sent.finish()

    def keep(self) -> None:
        self._kept = True

    def settle(self) -> None:
        # Of a file that is known, a sweep removes the mark alone.
        with contextlib.suppress(OSError):
            self._objects.remove_objects([self._mark])

    def discard(self) -> None:
        self._waiting.close()
        if self._kept or not self._begun:
            return
        # What cannot be removed now keeps its mark.
        with contextlib.suppress(OSError):
            self._sent.abort()
            self._objects.remove_objects([self._path])
            self._objects.remove_objects([self._mark])

    def _put_mark(self) -> None:
        self._objects.put_bytes(self._mark, self._path.encode())
        self._marked_at = time.monotonic()

    def _send(self) -> None:
        if not self._begun:
            self._put_mark()
            self._begun = True
        self._waiting.seek(0)
        self._sent.write(self._waiting.read())
        self._waiting.seek(0)
        self._waiting.truncate()


def _lies_in(path: str, folder: str) -> bool:
    return path.startswith(f"{folder}/")
