"""What the ranks print: into a file for each of them and, where the order says so, out of the launcher as well.

Nothing here may end a run: what cannot be written is lost.
"""

import contextlib
import os
import selectors
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from worker.wakeup import Wakeup

_PIECE = 2**16
_STDOUT = 1
# What a rank prints before the attempt is accepted waits in memory: this much of it, the newest.
_KEPT = 2**20
# A line that is longer goes out in several.
_LONGEST_LINE = 2**14


class Logs:
    """The logs of this machine's ranks, in `folder`.

    Without `echo` the ranks write their files themselves, from the start. With it a thread reads what they print: it
    goes out at once, and into the files once `begin` was called.
    """

    def __init__(self, folder: Path, echo: bool):
        self._folder = folder
        self._echo = echo
        self._ends: dict[int, int] = {}
        """What the ranks' output is read from, by rank."""
        self._wakeup = Wakeup()
        self._begun = threading.Event()
        self._done = threading.Event()

    def output(self, rank: int) -> int:
        """A descriptor for a rank to write to; whoever asked closes it. Never raises for a disk's sake."""
        if self._echo:
            self._ends[rank], theirs = os.pipe()
            return theirs
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return os.open(self._path(rank), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            log(f"the log of rank {rank} cannot be written: {error}")
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def start(self) -> None:
        """Reads from now on what was given out by `output`."""
        if self._ends:
            threading.Thread(target=self._read, args=(self._ends,), name="logs", daemon=True).start()
        else:
            self._done.set()

    def begin(self) -> None:
        """The attempt is accepted: its files may be written."""
        self._begun.set()
        self._wakeup.wake()

    def close(self, within: float) -> None:
        """Returns when all that the ranks said is written, or after `within` seconds."""
        self._done.wait(within)

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.log"

    def _read(self, ends: Mapping[int, int]) -> None:
        logs = {end: _Log(rank, self._path(rank)) for rank, end in ends.items()}
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakeup, selectors.EVENT_READ)
            for end in logs:
                selector.register(end, selectors.EVENT_READ)
            while len(selector.get_map()) > 1:
                self._wakeup.clear()
                for key, _ in selector.select():
                    if key.fd in logs and not logs[key.fd].hear(os.read(key.fd, _PIECE)):
                        selector.unregister(key.fd)
                        os.close(key.fd)
                if self._begun.is_set():
                    for one in logs.values():
                        one.write()
        self._done.set()


class _Log:
    """What one rank prints."""

    def __init__(self, rank: int, path: Path):
        self._rank, self._path = rank, path
        self._waiting = b""
        self._line = b""
        self._told = self._made = False

    def hear(self, piece: bytes) -> bool:
        """Takes the next piece of it, and passes its lines on; an empty piece is the end, and gives False."""
        self._waiting = (self._waiting + piece)[-_KEPT:]
        # A bar of progress writes over its own line again and again.
        *lines, self._line = (self._line + piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")).split(b"\n")
        if not piece or len(self._line) > _LONGEST_LINE:
            lines, self._line = [*lines, self._line], b""
        out = b"".join(b"[rank %d] %b\n" % (self._rank, line) for line in lines if line)
        with contextlib.suppress(OSError):
            while out:
                out = out[os.write(_STDOUT, out) :]
        return bool(piece)

    def write(self) -> None:
        """Brings into the file what is not in it yet."""
        if not self._waiting:
            return
        try:
            if not self._made:
                # Once: a folder that is gone later was removed together with its job.
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._made = True
            with self._path.open("ab", buffering=0) as file:
                while self._waiting:
                    self._waiting = self._waiting[file.write(self._waiting) :]
        except OSError as error:
            # The newest of it waits, as before the start: there may be room again.
            if not self._told:
                self._told = True
                log(f"the log of rank {self._rank} cannot be written: {error}")


def log(sentence: str) -> None:
    """A line of the launcher's own, for a person; it goes to stderr."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%H:%M:%S')} {' '.join(sentence.split())}", file=sys.stderr, flush=True)
