"""Files of the store as answers: streamed, whole or in ranges."""

import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.responses import FileResponse, Response

from api.folder import FolderStore
from api.stores import Stat, Store


class _Streamed(FileResponse):
    """A file that is no file of this machine: its ranges are asked for, one piece at a time in memory."""

    chunk_size = 2**20

    def __init__(self, store: Store, path: str, found: Stat, **given: Any) -> None:
        when = found.at.timestamp()
        # All but the kind, the size and the time is of no matter.
        about = os.stat_result((stat.S_IFREG, 0, 0, 1, 0, 0, found.bytes, when, when, when))
        super().__init__(path, stat_result=about, **given)
        self._store = store

    @asynccontextmanager
    async def _open_file(self) -> AsyncIterator[Any]:
        yield _Reading(self._store, str(self.path), self.stat_result.st_size if self.stat_result else 0)


class _Reading:
    """As much of an open file as an answer needs."""

    def __init__(self, store: Store, path: str, size: int) -> None:
        self._store, self._path, self._size, self._at = store, path, size, 0

    async def seek(self, at: int) -> None:
        self._at = at

    async def read(self, count: int) -> bytes:
        end = min(self._at + count, self._size)
        if end <= self._at:
            return b""
        content = await self._store.run(self._store.read, self._path, self._at, end)
        if len(content) != end - self._at:
            raise OSError(f"{self._path} became shorter while it was read")
        self._at = end
        return content


async def of_store(store: Store, path: str, *, media_type: str, filename: str) -> Response | None:
    """A file as an answer to be saved under `filename`; None: there is none. Raises OSError."""
    found = await store.run(store.stat, path)
    if found is None:
        return None
    if isinstance(store, FolderStore):
        return FileResponse(store.inside(path), media_type=media_type, filename=filename)
    return _Streamed(store, path, found, media_type=media_type, filename=filename)


async def pulled(store: Store, chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """What blocks, piece by piece beside the loop: no more of it is in memory than one piece."""
    while (chunk := await store.run(next, chunks, None)) is not None:
        yield chunk
