"""The logs of an attempt's ranks: from its folder while it lives, from the store afterwards."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from api.folder import Store

# What is shown and kept of one rank's log.
TAIL = 2**20
CHUNK = 64 * 1024
_MOST_ATTEMPTS = 2**31 - 1
# A kept log may begin in the midst of what was said: `rank-0.from-4096.log`.
_FILE = re.compile(r"rank-(\d{1,5})(?:\.from-(\d{1,18}))?\.log")


@dataclass(frozen=True, slots=True)
class Part:
    """Some whole lines of one rank's log; `end` is the offset after them, in bytes."""

    rank: int
    text: str
    end: int


@dataclass(frozen=True, slots=True)
class _File:
    """A log's file, whose first byte is the log's byte `start`."""

    path: Path
    start: int


class Logs:
    """Reads logs. All calls block, briefly."""

    def __init__(self, data: Path, store: Store) -> None:
        self._attempts = data / "attempts"
        self._store = store

    def ranks(self, job: str, attempt: int) -> list[int]:
        """The ranks that have a log."""
        return sorted(self._files(job, attempt))

    def tail(self, job: str, attempt: int, rank: int, lines: int | None) -> str:
        """The last MiB of a rank's log, or its last `lines` lines."""
        if (found := self._files(job, attempt).get(rank)) is None:
            return ""
        with found.path.open("rb") as file:
            begin = file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            raw = file.read(TAIL)
        if begin or found.start:
            raw = raw.partition(b"\n")[2]
        text = raw.decode("utf-8", "replace")
        return text if lines is None else "".join(text.splitlines(keepends=True)[-lines:] if lines else [])

    def read(self, job: str, attempt: int, rank: int, offset: int, *, last: bool) -> Part | None:
        """What follows `offset`, whole lines; the unfinished one too, if `last`. None: nothing yet.

        Offsets count from the log's first byte, kept or not: what is not kept any more is passed over.
        """
        if (found := self._files(job, attempt).get(rank)) is None:
            return None
        offset = max(offset, found.start)
        with found.path.open("rb") as file:
            file.seek(offset - found.start)
            raw = file.read(CHUNK)
        if not last or len(raw) == CHUNK:
            # A line that fills the chunk is cut; else the next turn has its end.
            cut = raw.rfind(b"\n") + 1
            raw = raw[:cut] if cut or len(raw) < CHUNK else _whole_characters(raw)
        return Part(rank, raw.decode("utf-8", "replace"), offset + len(raw)) if raw else None

    def _files(self, job: str, attempt: int) -> dict[int, _File]:
        """The log of each rank: the live one, or else the kept one."""
        found: dict[int, _File] = {}
        live = (self._attempts / f"{job}-a{attempt}" / "log", self._store.live_logs(job, attempt))
        for folder in (self._store.kept_logs(job, attempt), *live):
            for path in folder.iterdir() if folder.is_dir() else ():
                if name := _FILE.fullmatch(path.name):
                    found[int(name[1])] = _File(path, int(name[2] or 0))
        return found


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
