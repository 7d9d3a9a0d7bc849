"""What is fetched from a bucket: into a temporary file, hashed while it comes, renamed once it is whole."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from worker.contract.manifest import Damaged
from worker.storage.bucket import Bucket
from worker.storage.failures import NotThere

TEMPORARY = ".tmp-"
_CHUNK = 4 * 2**20


def fetch(bucket: Bucket, pool: ThreadPoolExecutor, key: str, size: int, into: Path, sha256: str | None) -> None:
    """Fetches an object of this size. What an earlier fetch left of it is gone on with, where the hash is known.

    Raises Damaged where it has another hash or size.
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    temporary = into.with_name(f"{TEMPORARY}{into.name}")
    begun = temporary.stat().st_size if sha256 is not None and temporary.exists() else 0
    try:
        if sha256 is None or not 0 < begun <= size:
            temporary.unlink(missing_ok=True)
            begun = 0
        found = _write(bucket, pool, key, begun, size, temporary)
        if begun and found != (size, sha256):
            temporary.unlink()
            found = _write(bucket, pool, key, 0, size, temporary)
    except NotThere:
        raise Damaged(f"{into.name} is missing") from None
    if found[0] != size:
        temporary.unlink()
        raise Damaged(f"{into.name} has {found[0]} bytes, not {size}")
    if sha256 is not None and found[1] != sha256:
        temporary.unlink()
        raise Damaged(f"{into.name} does not have its hash")
    temporary.replace(into)


def _write(
    bucket: Bucket, pool: ThreadPoolExecutor, key: str, begun: int, size: int, temporary: Path
) -> tuple[int, str]:
    """Goes on with a file that has `begun` bytes; gives the size and the hash of the whole."""
    digest, written = hashlib.sha256(), begun
    with temporary.open("r+b" if begun else "wb") as file:
        while file.tell() < begun:
            digest.update(file.read(min(_CHUNK, begun - file.tell())))
        for piece in _pieces(bucket, pool, key, begun, size):
            file.write(piece)
            digest.update(piece)
            written += len(piece)
    return written, digest.hexdigest()


def _pieces(bucket: Bucket, pool: ThreadPoolExecutor, key: str, start: int, size: int) -> Iterator[bytes]:
    """The rest of an object in order; some pieces ahead of the one that is written are on their way."""
    length, coming = bucket.options.part_bytes, deque[Future[bytes]]()
    try:
        while start < size or coming:
            while start < size and len(coming) < bucket.options.at_once:
                end = min(start + length, size)
                coming.append(pool.submit(bucket.get, key, start, end))
                start = end
            yield coming.popleft().result()
    finally:
        for one in coming:
            one.cancel()
