"""What uploads and deletions leave in the store when their process dies: marked before, and swept by its mark.

A mark is a file `FOLDER/.tmp-ID` beside what it stands for. An upload has one until its row is committed, a deletion
from before its row goes until its bytes are gone.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from api.store import files, models
from api.store.database import Database
from api.stores import TEMPORARY, Store

# Younger marks may be those of another replica, which is at it.
_AGE = timedelta(hours=24)
# Seconds.
_EVERY = 3600.0
# Looked up at once.
_SWEPT = 500
log = logging.getLogger(__name__)


class Removal:
    """The removal of a file's or a model's bytes: marked before its row goes, done once that is committed.

    The mark is no part of the transaction, which would be held up with all that wait for it. One that is left over
    does no harm: a sweep asks the database.
    """

    def __init__(self, store: Store, folder: str, id: str, path: str) -> None:
        self._store, self._path, self._mark = store, path, f"{folder}/{TEMPORARY}{id}"

    async def mark(self) -> None:
        """Before the transaction. Raises OSError, unless what is wrong is a disk that is full."""
        await self._store.run(self._store.unsettle, self._mark, self._path)

    async def carry_out(self) -> None:
        """After the commit. What the store does not remove now is swept later."""
        try:
            await self._store.run(self._store.remove, self._path)
            await self._store.run(self._store.remove, self._mark)
        except OSError as error:
            log.warning("%s is not removed yet: %s", self._path, error)


async def sweep(store: Store, database: Database) -> None:
    """Removes what is left over: also bytes that were in place, but never committed. Raises OSError."""
    await store.run(store.remove_parts, _AGE)
    await _sweep(store, database, "files", files.known)
    await _sweep(store, database, "models", models.known)


async def sweeping(store: Store, database: Database, stop: asyncio.Event) -> None:
    """Sweeps every so often, until `stop`: a process may be up for months."""
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _EVERY)
        if stop.is_set():
            return
        try:
            await sweep(store, database)
        except (OSError, SQLAlchemyError) as error:
            log.warning("what is left over in the store is swept later: %s", error)


async def _sweep(store: Store, database: Database, folder: str, known: Callable[..., set[str]]) -> None:
    marks = await store.run(store.files, folder, TEMPORARY)
    old = sorted(name for name, stat in marks.items() if datetime.now(UTC) - stat.at > _AGE and "/" not in name)
    for start in range(0, len(old), _SWEPT):
        part = {name.removeprefix(TEMPORARY): f"{folder}/{name}" for name in old[start : start + _SWEPT]}
        there = await database.look(partial(known, ids=list(part)))
        for id, mark in part.items():
            if id not in there:
                await store.run(_remove, store, id, mark)
            # Last: as long as it is there, the next sweep looks again.
            await store.run(store.remove, mark)


def _remove(store: Store, id: str, mark: str) -> None:
    # The mark of an upload into a folder holds what has come of it.
    try:
        path = f"files/{id}.jsonl" if mark.startswith("files/") else store.read(mark).decode("utf-8", "replace")
    except FileNotFoundError:
        return  # another replica was faster
    try:
        store.remove(path)
    except ValueError:
        log.warning("%s names nothing in the store: %s", mark, path[:200])
