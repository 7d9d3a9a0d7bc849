"""The logs of an attempt's ranks: from its folder while it lives, from the store afterwards."""

import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from api.folder import FolderStore
from api.stores import Store, kept_logs, live_logs

# What is shown and kept of one rank's log.
TAIL = 2**20
CHUNK = 64 * 1024
# Attempts whose files are remembered.
_REMEMBERED = 256
_MOST_ATTEMPTS = 2**31 - 1
NAME = re.compile(r"rank-(\d{1,5})(?:\.from-(\d{1,18}))?\.log")
"""A rank's log; it may begin in the midst of what was said: `rank-0.from-4096.log`."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some whole lines of one rank's log; `end` is the offset after them, in bytes."""

    rank: int
    text: str
    end: int


@dataclass(frozen=True, slots=True)
class _File:
    """A log's file in `store`, whose first byte is the log's byte `start`, as it was when it was looked at."""

    store: Store
    path: str
    start: int
    bytes: int


class Logs:
    """Reads logs. All calls block, as long as the store does: call them by its `run`."""

    def __init__(self, data: Path, store: Store) -> None:
        # Where attempts of this machine have theirs, wherever the store is.
        self._attempts = FolderStore(data / "attempts")
        self._store = store
        self._seen: OrderedDict[tuple[str, int], tuple[float, dict[int, _File]]] = OrderedDict()
        self._lock = threading.Lock()

    def ranks(self, job: str, attempt: int) -> list[int]:
        """The ranks that have a log."""
        return sorted(self._files(job, attempt))

    def tail(self, job: str, attempt: int, rank: int, lines: int | None) -> str:
        """The last MiB of a rank's log, or its last `lines` lines."""
        if (found := self._files(job, attempt).get(rank)) is None:
            return ""
        begin = max(0, found.bytes - TAIL)
        raw = _read(found, begin, begin + TAIL)
        if begin or found.start:
            raw = raw.partition(b"\n")[2]
        text = raw.decode("utf-8", "replace")
        return text if lines is None else "".join(text.splitlines(keepends=True)[-lines:] if lines else [])

    def read(self, job: str, attempt: int, rank: int, offset: int, *, last: bool) -> Part | None:
        """What follows `offset`, whole lines; the unfinished one too, if `last`. None: nothing yet.

        Offsets count from the log's first byte, kept or not: what is not kept any more is passed over.
        """
        if (found := self._files(job, attempt, remembered=not last).get(rank)) is None:
            return None
        offset = max(offset, found.start)
        if offset - found.start >= found.bytes:
            return None
        raw = _read(found, offset - found.start, offset - found.start + CHUNK)
        if not last or len(raw) == CHUNK:
            # A line that fills the chunk is cut; else the next turn has its end.
            cut = raw.rfind(b"\n") + 1
            raw = raw[:cut] if cut or len(raw) < CHUNK else _whole_characters(raw)
        return Part(rank, raw.decode("utf-8", "replace"), offset + len(raw)) if raw else None

    def _files(self, job: str, attempt: int, *, remembered: bool = True) -> dict[int, _File]:
        """The log of each rank: the live one, or else the kept one. `remembered`: as it was a moment ago will do."""
        if here := _in(self._attempts, f"{job}-a{attempt}/log"):
            return here
        memory, key = self._store.memory if remembered else 0.0, (job, attempt)
        if memory:
            with self._lock:
                when, known = self._seen.get(key, (-math.inf, {}))
            if time.monotonic() - when < memory:
                return known
        found = _in(self._store, kept_logs(job, attempt)) | _in(self._store, live_logs(job, attempt))
        with self._lock:
            self._seen[key] = time.monotonic(), found
            self._seen.move_to_end(key)
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return found


def _in(store: Store, folder: str) -> dict[int, _File]:
    """The log of each rank in a folder."""
    return {
        int(name[1]): _File(store, f"{folder}/{path}", int(name[2] or 0), stat.bytes)
        for path, stat in store.files(folder, "rank-").items()
        if (name := NAME.fullmatch(path))
    }


def _read(file: _File, start: int, end: int) -> bytes:
    try:
        return file.store.read(file.path, start, end)
    except FileNotFoundError:
        # It was kept, or removed, since it was seen: the next look finds it where it is now.
        return b""


@dataclass(slots=True)
class Place:
    """How far a stream has read: `2/0:340,1:77` is attempt 2, and an offset for each rank."""

    attempt: int
    offsets: dict[int, int]

    def __str__(self) -> str:
        return f"{self.attempt}/" + ",".join(f"{rank}:{offset}" for rank, offset in sorted(self.offsets.items()))

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Raises ValueError."""
        attempt, _, rest = text.partition("/")
        offsets = dict(pair.split(":") for pair in rest.split(",") if pair)
        place = cls(int(attempt), {int(rank): int(offset) for rank, offset in offsets.items()})
        numbers = [number for pair in place.offsets.items() for number in pair]
        if not 0 <= place.attempt <= _MOST_ATTEMPTS or any(number < 0 or number > 2**62 for number in numbers):
            raise ValueError("a place's numbers are those of attempts, ranks and offsets")
        return place

    def next(self, logs: Logs, job: str, wanted: Sequence[int], *, last: bool) -> Part | None:
        """The next part of any rank (all, where `wanted` is empty), and moves on past it."""
        for rank in wanted or logs.ranks(job, self.attempt):
            part = logs.read(job, self.attempt, rank, self.offsets.get(rank, 0), last=last)
            if part is not None:
                self.offsets[rank] = part.end
                return part
        return None


def _whole_characters(raw: bytes) -> bytes:
    """`raw` without the beginning of a character at its end (UTF-8 has up to 4 bytes)."""
    for back in range(1, 4):
        if raw[-back] & 0b1100_0000 == 0b1100_0000:
            return raw[:-back]
        if raw[-back] < 0b1000_0000:
            break
    return raw
