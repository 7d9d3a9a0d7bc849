"""What is put into a bucket: in one call where it is small, else in parts; whole or not there at all."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from worker.storage.bucket import Bucket
from worker.storage.failures import NotThere, StorageFailure

# As many parts as an upload may have, and some to spare.
_MOST_PARTS = 9000
_MIB = 2**20
SHA256 = "sha256"
"""The name under which an object carries its hash."""


def part_bytes(size: int, wanted: int) -> int:
    """The size of the parts that a file goes in: `wanted`, or as much more as keeps their number allowed."""
    return max(wanted, math.ceil(size / _MOST_PARTS / _MIB) * _MIB)


def put_bytes(bucket: Bucket, key: str, content: bytes, sha256: str | None = None) -> None:
    """Puts a small object, with its hash."""
    known = sha256 or hashlib.sha256(content).hexdigest()
    bucket.call("put_object", Key=key, Body=content, Metadata={SHA256: known}, sent=len(content))


def put_parts(bucket: Bucket, pool: ThreadPoolExecutor, local: Path, key: str, sha256: str) -> None:
    """Puts a large file. Parts of it that an upload which was cut off left behind are not sent again."""
    size = local.stat().st_size
    length = part_bytes(size, bucket.options.part_bytes)
    upload, done = _found(bucket, local, key, length)
    resumed = upload is not None
    if upload is None:
        upload = bucket.call("create_multipart_upload", Key=key, Metadata={SHA256: sha256})["UploadId"]
    numbers = [number for number in range(1, math.ceil(size / length) + 1) if number not in done]

    def send(number: int) -> None:
        content = _part(local, number, length)
        answer = bucket.call(
            "upload_part", Key=key, UploadId=upload, PartNumber=number, Body=content, sent=len(content)
        )
        done[number] = answer["ETag"]

    all_of(pool, bucket.options.at_once, send, numbers)
    sure = complete(bucket, key, upload, done, size)
    if (resumed or not sure) and stored_sha256(bucket, key) != sha256:
        # It was begun for other bytes, of which these parts were the same, and would carry another's hash; or what lies
        # there is older, and the upload is gone.
        bucket.call("delete_object", Key=key)
        put_parts(bucket, pool, local, key, sha256)


def abort(bucket: Bucket, key: str, upload: str) -> None:
    """Removes what was sent of an upload. One that is gone already is no failure."""
    with contextlib.suppress(NotThere):
        bucket.call("abort_multipart_upload", Key=key, UploadId=upload)


def stored_sha256(bucket: Bucket, key: str) -> str | None:
    """The hash that an object carries; None: it is not there, or carries none."""
    try:
        known: str | None = bucket.call("head_object", Key=key).get("Metadata", {}).get(SHA256)
    except NotThere:
        return None
    return known


def all_of(pool: ThreadPoolExecutor, at_once: int, do: Callable[[Any], None], items: list[Any]) -> None:
    """Calls `do` with each item, `at_once` of them at a time. Raises the first failure; no new one is begun then."""
    waiting, running = iter(items), set[Future[None]]()
    try:
        for item in waiting:
            running.add(pool.submit(do, item))
            if len(running) >= at_once:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for one in done:
                    one.result()
        for one in running:
            one.result()
    except BaseException:
        for one in running:
            one.cancel()
        wait(running)
        raise


def _part(local: Path, number: int, length: int) -> bytes:
    with local.open("rb") as file:
        file.seek((number - 1) * length)
        return file.read(length)


def _found(bucket: Bucket, local: Path, key: str, length: int) -> tuple[str | None, dict[int, str]]:
    """An upload of this key that was cut off, and those of its parts that have this file's bytes."""
    for of, upload, _ in unfinished(bucket, key):
        if of != key:
            continue
        done = {}
        try:
            parts = list(bucket.pages("list_parts", "Parts", Key=key, UploadId=upload))
        except NotThere:
            continue
        for part in parts:
            # Where a part's tag is no MD5, as with some encryptions, it is sent again.
            content = _part(local, part["PartNumber"], length)
            if part["ETag"].strip('"') == hashlib.md5(content, usedforsecurity=False).hexdigest():
                done[part["PartNumber"]] = part["ETag"]
        if len(done) == len(parts) and done:
            return upload, done
        abort(bucket, key, upload)
    return None, {}


def unfinished(bucket: Bucket, prefix: str) -> Iterator[tuple[str, str, datetime]]:
    """The uploads below a prefix that are not finished: key, id, and when each was begun."""
    for found in list(bucket.pages("list_multipart_uploads", "Uploads", Prefix=prefix)):
        yield found["Key"], found["UploadId"], found["Initiated"]


def complete(bucket: Bucket, key: str, upload: str, done: dict[int, str], size: int) -> bool:
    """Makes one object, of `size` bytes, of the parts that were sent. False: one is there, and may be an older one."""
    parts = [{"PartNumber": number, "ETag": done[number]} for number in sorted(done)]
    try:
        bucket.call("complete_multipart_upload", Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
    except NotThere:
        # The answer to the same call may have been lost, and the call tried again.
        with contextlib.suppress(NotThere):
            if bucket.call("head_object", Key=key)["ContentLength"] == size:
                return False
        raise StorageFailure(f"the upload of {bucket.place.path(key)} was removed by somebody else") from None
    return True


@dataclass
class Upload:
    """An object that is written piece by piece, in order, by one thread at a time; there once `finish` has returned.

    As a context manager it is given up where it was not finished.
    """

    bucket: Bucket
    key: str
    size: int = 0
    """Bytes written so far."""
    _digest: Any = field(default_factory=hashlib.sha256)
    _waiting: bytearray = field(default_factory=bytearray)
    _upload: str | None = None
    _parts: dict[int, str] = field(default_factory=dict)
    _done: bool = False

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        digest: str = self._digest.hexdigest()
        return digest

    def write(self, piece: bytes) -> None:
        """Takes the next piece; sends a part where there is enough of it for one."""
        self._digest.update(piece)
        self.size += len(piece)
        self._waiting += piece
        # Of what may become long, the later parts are larger: nobody has said how many there will be.
        length = self.bucket.options.part_bytes * (1 + len(self._parts) // 1000)
        while len(self._waiting) >= length:
            self._send(bytes(self._waiting[:length]))
            del self._waiting[:length]

    def finish(self) -> None:
        """Puts it there, whole."""
        if self._upload is None:
            put_bytes(self.bucket, self.key, bytes(self._waiting), self.sha256)
        else:
            if self._waiting:
                self._send(bytes(self._waiting))
            complete(self.bucket, self.key, self._upload, self._parts, self.size)
        self._waiting.clear()
        self._done = True

    def abort(self) -> None:
        """Gives it up: nothing of it stays."""
        self._waiting.clear()
        if self._upload is not None and not self._done:
            abort(self.bucket, self.key, self._upload)
        self._done = True

    def _send(self, content: bytes) -> None:
        if self._upload is None:
            self._upload = self.bucket.call("create_multipart_upload", Key=self.key)["UploadId"]
        number = len(self._parts) + 1
        answer = self.bucket.call(
            "upload_part",
            Key=self.key,
            UploadId=self._upload,
            PartNumber=number,
            Body=content,
            sent=len(content),
        )
        self._parts[number] = answer["ETag"]

    def __enter__(self) -> "Upload":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not self._done:
            self.abort()
