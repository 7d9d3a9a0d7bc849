"""Whether a key is still good, for those who go on for long: asked once a second for all who hold it."""

import asyncio
import time
from functools import partial

from api.store import keys
from api.store.database import Database, utcnow

# Seconds for which an answer holds. A stream goes on for no longer with a key that was revoked.
KEPT = 1.0
# Keys that are remembered; more, and the old ones are forgotten.
_MOST = 1000


class Trust:
    """What the database said of keys a moment ago. A thousand streams of one key are one question, not a thousand."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asked: dict[str, tuple[float, asyncio.Task[bool]]] = {}

    async def good(self, key: str) -> bool:
        """Whether the key of this id may still be used."""
        now = time.monotonic()
        at, task = self._asked.get(key, (0.0, None))
        if task is None or now > at + KEPT or (task.done() and (task.cancelled() or task.exception() is not None)):
            if len(self._asked) >= _MOST:
                self._asked = {id: entry for id, entry in self._asked.items() if now <= entry[0] + KEPT}
            task = asyncio.create_task(self._database.look(partial(keys.good, id=key, now=utcnow())))
            self._asked[key] = (now, task)
        # One who goes away meanwhile takes the answer from nobody.
        return await asyncio.shield(task)
