"""A store in a bucket: the paths are those of a store in a folder. Synchronous; any thread may call anything."""

import contextlib
import secrets
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from worker.contract import manifest
from worker.contract.manifest import MANIFEST, Damaged, Manifest
from worker.storage import downloads, uploads
from worker.storage.bucket import Bucket
from worker.storage.failures import Away, NotThere, Refused
from worker.storage.options import Options
from worker.storage.place import Place

_DELETED_AT_ONCE = 1000
_LONGEST_MANIFEST = 64 * 2**20
# One call copies an object up to this size; a larger one is copied in parts of it.
_COPIED_AT_ONCE = 2**30


@dataclass(frozen=True)
class Object:
    """What is known of an object without reading it."""

    bytes: int
    modified: datetime
    sha256: str | None
    """Of what was put by a worker or the control plane; what came in pieces carries none."""


@dataclass(frozen=True)
class Entry:
    """One object of a listing."""

    path: str
    bytes: int
    modified: datetime


class ObjectStore:
    """The store at `s3://bucket/prefix`.

    Raises Away, Refused, Full, NotThere or StorageFailure, which are OSErrors; and ValueError for a path that leads
    out of the store.
    """

    def __init__(self, url: str, options: Options | None = None):
        """Connects to nothing yet. Raises ValueError for a URL that names no place in a bucket."""
        self.place = Place.of(url)
        self.options = options or Options()
        self._bucket = Bucket(self.place, self.options)
        self._fetching: dict[Path, threading.Lock] = defaultdict(threading.Lock)
        self._fetching_lock = threading.Lock()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.options.at_once, thread_name_prefix="storage")

    @property
    def url(self) -> str:
        """As it is written, without a slash at its end."""
        return self.place.url

    def check(self, *, write: bool = True) -> None:
        """Looks whether it can be listed, and with `write` also written, read and removed. Raises what is wrong."""
        self._bucket.call("list_objects_v2", Prefix=self.place.prefix, MaxKeys=1)
        if not write:
            return
        path = f".check-{secrets.token_hex(8)}"
        self.put_bytes(path, b"ok")
        try:
            if self.read(path) != b"ok":
                raise Refused(f"the store {self.url} does not give back what is put there")
        finally:
            self.remove(path)

    # What is put there

    def put_bytes(self, path: str, content: bytes) -> None:
        """Puts a small object."""
        uploads.put_bytes(self._bucket, self.place.key(path), content)

    def put_file(self, local: Path, path: str, sha256: str | None = None) -> None:
        """Puts a file: whole or not there at all. `sha256`: its hash, where it is known already. Raises OSError."""
        known = sha256 or manifest.file_sha256(local)
        if local.stat().st_size <= self.options.part_bytes:
            uploads.put_bytes(self._bucket, self.place.key(path), local.read_bytes(), known)
        else:
            uploads.put_parts(self._bucket, self._pool, local, self.place.key(path), known)

    def put_folder(self, local: Path, path: str) -> Manifest:
        """Puts a sealed folder, its manifest last; files that are there already with their hash are not sent again."""
        described = manifest.read(local)
        self.put_files(local, path, described)
        self.put_manifest(path, described)
        return described

    def put_files(self, local: Path, path: str, described: Manifest) -> None:
        """Puts the files of a folder without its manifest: nobody takes it for whole yet."""
        there = {entry.path: entry.bytes for entry in self.list(path)}
        missing = []
        for name, entry in described.files.items():
            target = f"{path}/{name}"
            self.place.key(target)
            if there.get(target) != entry.bytes or self.stat(target).sha256 != entry.sha256:
                missing.append(name)
        small = [name for name in missing if described.files[name].bytes <= self.options.part_bytes]

        def put(name: str) -> None:
            self.put_file(local / name, f"{path}/{name}", described.files[name].sha256)

        uploads.all_of(self._pool, self.options.at_once, put, small)
        for name in missing:
            if described.files[name].bytes > self.options.part_bytes:
                put(name)

    def put_manifest(self, path: str, described: Manifest) -> None:
        """Says that a folder is whole: all its files are there."""
        self.put_bytes(f"{path}/{MANIFEST}", described.encode())

    def upload(self, path: str) -> uploads.Upload:
        """An object to be written piece by piece; it is there once finished."""
        return uploads.Upload(self._bucket, self.place.key(path))

    def copy(self, path: str, to: str) -> None:
        """Copies an object inside the store, without fetching it."""
        source = {"Bucket": self.place.bucket, "Key": self.place.key(path)}
        size = self.stat(path).bytes
        if size <= _COPIED_AT_ONCE:
            self._bucket.call("copy_object", Key=self.place.key(to), CopySource=source)
            return
        metadata = {uploads.SHA256: known} if (known := self.stat(path).sha256) else {}
        key = self.place.key(to)
        upload = self._bucket.call("create_multipart_upload", Key=key, Metadata=metadata)["UploadId"]
        parts: dict[int, str] = {}

        def copy(number: int) -> None:
            start = (number - 1) * _COPIED_AT_ONCE
            answer = self._bucket.call(
                "upload_part_copy",
                Key=key,
                UploadId=upload,
                PartNumber=number,
                CopySource=source,
                CopySourceRange=f"bytes={start}-{min(start + _COPIED_AT_ONCE, size) - 1}",
                sent=_COPIED_AT_ONCE,
            )
            parts[number] = answer["CopyPartResult"]["ETag"]

        try:
            count = -(-size // _COPIED_AT_ONCE)
            uploads.all_of(self._pool, self.options.at_once, copy, list(range(1, count + 1)))
            uploads.complete(self._bucket, key, upload, parts, size)
        except BaseException:
            with contextlib.suppress(OSError):
                uploads.abort(self._bucket, key, upload)
            raise

    def copy_folder(self, path: str, to: str) -> Manifest:
        """Copies a whole folder inside the store, its manifest last. Raises Damaged where it is not whole."""
        described = self.manifest(path)
        for name in described.files:
            self.copy(f"{path}/{name}", f"{to}/{name}")
        self.put_manifest(to, described)
        return described

    # What is fetched from there

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        """The bytes from `start` to before `end` (None: the object's end), fewer where it ends before."""
        if end is None:
            end = self.size(path)
        return self._bucket.get(self.place.key(path), start, end) if end > start else b""

    def fetch_file(self, path: str, into: Path, sha256: str | None = None) -> None:
        """Fetches an object; a file that is there already with this hash is left as it is. Raises Damaged."""
        with self._alone(into):
            if sha256 is not None and into.is_file() and manifest.file_sha256(into) == sha256:
                return
            size = self.size(path)
            downloads.fetch(self._bucket, self._pool, self.place.key(path), size, into, sha256)

    def fetch_folder(self, path: str, into: Path, wanted: Callable[[str], bool] | None = None) -> Manifest:
        """Fetches a whole folder and gives its manifest; one that is there already and whole is left as it is.

        `wanted`: which of its files; the manifest that is written tells of these alone. Raises Damaged where it is not
        whole, or a file has not its hash.
        """
        with self._alone(into):
            described = self.manifest(path)
            if wanted is not None:
                described = Manifest(files={name: e for name, e in described.files.items() if wanted(name)})
            if _is_there(into, described):
                return described
            temporary = into.with_name(f"{downloads.TEMPORARY}{into.name}")
            for name, entry in described.files.items():
                local = temporary / name
                if local.is_file() and local.stat().st_size == entry.bytes:
                    if manifest.file_sha256(local) == entry.sha256:
                        continue
                    local.unlink()
                try:
                    downloads.fetch(
                        self._bucket, self._pool, self.place.key(f"{path}/{name}"), entry.bytes, local, entry.sha256
                    )
                except Damaged as damaged:
                    raise Damaged(f"{path.rpartition('/')[2]}/{name}: {damaged}") from None
            temporary.mkdir(parents=True, exist_ok=True)
            (temporary / MANIFEST).write_bytes(described.encode())
            shutil.rmtree(into, ignore_errors=True)
            temporary.rename(into)
            return described

    # What is there

    def manifest(self, path: str) -> Manifest:
        """The manifest of a folder. Raises Damaged where there is none, or none that can be read."""
        name = path.rpartition("/")[2]
        try:
            content = self.read(f"{path}/{MANIFEST}", 0, _LONGEST_MANIFEST)
            described = Manifest.model_validate_json(content)
        except NotThere:
            raise Damaged(f"{name} has no {MANIFEST}") from None
        except ValidationError as error:
            raise Damaged(f"{name}/{MANIFEST} cannot be read: {type(error).__name__}") from None
        for file in described.files:
            try:
                self.place.key(f"{path}/{file}")
            except ValueError:
                raise Damaged(f"{name}/{file!r} leads out of the folder") from None
        return described

    def manifests(self, path: str) -> Iterator[Entry]:
        """The folders below `path` that have a manifest, each with its manifest's size and time."""
        for entry in self.list(path):
            folder, _, name = entry.path.rpartition("/")
            if name == MANIFEST:
                yield Entry(folder, entry.bytes, entry.modified)

    def list(self, path: str = "", beginning: str = "") -> Iterator[Entry]:
        """All objects below a path, by their paths; of the empty one, of the whole store.

        `beginning`: only those whose path goes on so below it.
        """
        prefix = (self.place.key(path) + "/" if path else self.place.prefix) + beginning
        for found in self._bucket.pages("list_objects_v2", "Contents", Prefix=prefix):
            yield Entry(self.place.path(found["Key"]), found["Size"], found["LastModified"])

    def folders(self, path: str = "") -> Iterator[str]:
        """The names right below a path that have something below them."""
        prefix = self.place.key(path) + "/" if path else self.place.prefix
        for found in self._bucket.pages("list_objects_v2", "CommonPrefixes", Prefix=prefix, Delimiter="/"):
            yield found["Prefix"].removeprefix(prefix).rstrip("/")

    def stat(self, path: str) -> Object:
        """What is known of an object. Raises NotThere."""
        found = self._bucket.call("head_object", Key=self.place.key(path))
        return Object(found["ContentLength"], found["LastModified"], found.get("Metadata", {}).get(uploads.SHA256))

    def exists(self, path: str) -> bool:
        """Whether there is such an object. A folder is none: ask for its manifest."""
        try:
            self.stat(path)
        except NotThere:
            return False
        return True

    def size(self, path: str) -> int:
        """An object's bytes. Raises NotThere."""
        return self.stat(path).bytes

    # What is removed

    def remove(self, path: str) -> None:
        """Removes an object, or all below a path; manifests first: what is half gone is not taken for whole."""
        if not path:
            raise ValueError("the whole store is not removed")
        paths = sorted((entry.path for entry in self.list(path)), key=lambda p: not p.endswith(f"/{MANIFEST}"))
        first = sum(p.endswith(f"/{MANIFEST}") for p in paths)
        self.remove_objects(paths[:first])
        self.remove_objects([*paths[first:], path])

    def remove_objects(self, paths: Iterable[str]) -> None:
        """Removes objects; those that are not there are no failure."""
        keys = [self.place.key(path) for path in paths]
        for at in range(0, len(keys), _DELETED_AT_ONCE):
            named = [{"Key": key} for key in keys[at : at + _DELETED_AT_ONCE]]
            answer = self._bucket.call("delete_objects", Delete={"Objects": named, "Quiet": True})
            if failed := answer.get("Errors"):
                said = f"the store {self.url} does not remove what it is asked to ({failed[0].get('Code')})"
                raise Refused(said) if failed[0].get("Code") == "AccessDenied" else Away(said)

    def abort_uploads(self, path: str = "", older_than: timedelta = timedelta(0)) -> int:
        """Removes what uploads that were cut off have left below a path; gives how many there were."""
        prefix = self.place.key(path) + "/" if path else self.place.prefix
        before = datetime.now(UTC) - older_than
        count = 0
        for key, upload, begun in uploads.unfinished(self._bucket, prefix):
            if begun <= before or not older_than:
                uploads.abort(self._bucket, key, upload)
                count += 1
        return count

    @contextlib.contextmanager
    def _alone(self, into: Path) -> Iterator[None]:
        """Only one of this process fetches into a place at a time."""
        with self._fetching_lock:
            lock = self._fetching[into.absolute()]
        with lock:
            yield


def _is_there(folder: Path, described: Manifest) -> bool:
    try:
        return manifest.read(folder).sha256 == described.sha256 and bool(manifest.verify(folder))
    except Damaged:
        return False
