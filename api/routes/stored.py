"""Files of the store as answers: streamed, whole or in ranges."""

from collections.abc import AsyncIterator, Iterator

from starlette.responses import FileResponse, Response

from api.folder import FolderStore
from api.stores import Store


async def of_store(store: Store, path: str, *, media_type: str, filename: str) -> Response | None:
    """A file as an answer to be saved under `filename`; None: there is none. Raises OSError."""
    if await store.run(store.stat, path) is None:
        return None
    assert isinstance(store, FolderStore)
    return FileResponse(store.inside(path), media_type=media_type, filename=filename)


async def pulled(store: Store, chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """What blocks, piece by piece beside the loop: no more of it is in memory than one piece."""
    while (chunk := await store.run(next, chunks, None)) is not None:
        yield chunk
