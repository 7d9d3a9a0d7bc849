"""A copy of a collection that follows it: list, then watch from there, and list again where that breaks off.

What it shows may be late by the time a message takes, and is never in between: an object is as it was stored once.
"""

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping

from api.operator.cluster import ClusterError
from api.operator.kube_api import Gone, Json, KubeApi, Resource

log = logging.getLogger(__name__)
# A server ends a watch itself after a while; it is asked to, so that one that was lost on the way is replaced.
_WATCH_SECONDS = 600
# Bookmarks come every minute: who hears nothing for longer than this has a dead line.
SILENCE = 90.0
# Between two tries, in seconds: the first, and the longest.
_RETRY, _LONGEST_RETRY = 0.2, 10.0


class Informer:
    """Follows the objects of one kind that `query` selects, and to which `key` gives a key; others are passed over.

    `changed` is told the key of each that came, changed or went.
    """

    def __init__(
        self,
        api: KubeApi,
        kind: Resource,
        query: Mapping[str, str],
        *,
        key: Callable[[Json], str | None],
        changed: Callable[[str], None],
        silence: float = SILENCE,
        bookmarks: bool = True,
    ) -> None:
        self._api, self._kind, self._query = api, kind, dict(query)
        self._key, self._changed = key, changed
        self._silence = silence
        # Of what the API server holds no copy in its memory there are none: such a watch is ended before it is silent.
        self._seconds = _WATCH_SECONDS if bookmarks else max(1, int(silence / 2))
        self._objects: dict[str, Json] = {}
        self._by_key: defaultdict[str, dict[str, Json]] = defaultdict(dict)
        self._version = 0
        """All up to this resource version is known; 0: nothing is, and it is listed."""
        self.whole = asyncio.Event()
        """Set once everything was listed."""
        self.trouble: str | None = None
        """Why it does not follow at the moment, in the API server's words."""

    def of(self, key: str) -> list[Json]:
        """The objects that have this key."""
        return list(self._by_key[key].values()) if key in self._by_key else []

    def keys(self) -> set[str]:
        """The keys of all objects."""
        return set(self._by_key)

    async def run(self) -> None:
        """Follows until it is cancelled."""
        wait = _RETRY
        while True:
            began = time.monotonic()
            try:
                if self._version == 0:
                    await self.list()
                await self._watch()
            except Gone:
                self._version = 0
                continue
            except ClusterError as error:
                # The copy stays as it is: that nobody answers says nothing of what there is.
                self._tell(str(error))
            except Exception as error:  # an answer of a form that nobody foresaw: start again
                log.exception("following %s failed", self._kind.plural)
                self._tell(f"{type(error).__name__}: {error}")
                self._version = 0
            else:
                wait = _RETRY
                continue
            if time.monotonic() - began > _LONGEST_RETRY:
                wait = _RETRY
            await asyncio.sleep(wait * random.uniform(0.8, 1.2))
            wait = min(_LONGEST_RETRY, wait * 2)

    def put(self, item: Json) -> None:
        """Takes in an object as a call has just given it, unless what is here is newer: it may be gone by now."""
        before = self._objects.get(item["metadata"]["uid"])
        if _number(item) > (self._version if before is None else _number(before)):
            self._set(item)

    def forget(self, key: str) -> None:
        """Drops what there is of a key: a call has just told that there is nothing."""
        for item in self.of(key):
            self._drop(item)

    def doubt(self) -> None:
        """Takes what is here for unknown until everything was listed again."""
        self.whole.clear()
        self._version = 0

    async def list(self) -> None:
        """Lists now: what was there when this was called is known afterwards. Raises ClusterError."""
        answer = await self._api.list(self._kind, self._query)
        version = int(answer["metadata"]["resourceVersion"])
        if version < self._version:
            # The watch has told of later things while the answer was on its way.
            self.whole.set()
            return
        found = {item["metadata"]["uid"]: item for item in answer.get("items") or ()}
        for uid, item in list(self._objects.items()):
            # What was created while the answer was on its way is not in it, and is there all the same.
            if uid not in found and _number(item) <= version:
                self._drop(item)
        for uid, item in found.items():
            if uid not in self._objects or _number(self._objects[uid]) < _number(item):
                self._set(item)
        self._version = max(version, self._version)
        self.whole.set()

    async def _watch(self) -> None:
        query = {**self._query, "resourceVersion": str(self._version), "timeoutSeconds": str(self._seconds)}
        async for event in self._api.watch(self._kind, query, self._silence, self._hears):
            item = event["object"]
            # Older than a list that was made meanwhile: it may tell of what is gone by now.
            if _number(item) <= self._version:
                continue
            self._version = _number(item)
            match event["type"]:
                case "BOOKMARK":
                    continue
                case "DELETED":
                    self._drop(item)
                case _:
                    self._set(item)

    def _set(self, item: Json) -> None:
        if (key := self._key(item)) is not None:
            uid = item["metadata"]["uid"]
            self._objects[uid] = self._by_key[key][uid] = item
            self._changed(key)

    def _drop(self, item: Json) -> None:
        uid = item["metadata"]["uid"]
        if (known := self._objects.pop(uid, None)) is not None and (key := self._key(known)) is not None:
            del self._by_key[key][uid]
            if not self._by_key[key]:
                del self._by_key[key]
            self._changed(key)

    def _hears(self) -> None:
        self.trouble = None

    def _tell(self, words: str) -> None:
        if self.trouble is None:
            log.warning("%s cannot be followed at the moment: %s", self._kind.plural, words)
        self.trouble = words


def _number(item: Json) -> int:
    return int(item["metadata"].get("resourceVersion") or 0)
