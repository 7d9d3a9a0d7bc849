"""An attempt's folder on this machine: what its files prove.

`lock` is held by every process of the attempt, so it lives as long as anybody holds the lock. The launcher writes its
pid into it first of all (proof that it was started), and `exit.json` last of all (proof that it is over).
"""

import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import ValidationError

from api.domain.job import Reason
from api.domain.observation import Observation
from api.operator.cluster import LogEnd
from worker.contract.order import Order
from worker.contract.protocol import Termination

LOG_TAIL = 2**20
_WORDS_TAIL = 2000


def write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Writes a file whole or not at all, on disk before it returns."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def tail(path: Path, size: int) -> LogEnd:
    """The last `size` bytes of a file; nothing if it is not there."""
    try:
        with path.open("rb") as file:
            start = file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return LogEnd(start, file.read(size))
    except FileNotFoundError:
        return LogEnd(0, b"")


def rank_logs(folder: Path) -> dict[int, LogEnd]:
    """The end of each `rank-N.log` in a folder, by rank; none where there is no folder."""
    found = {}
    for path in folder.glob("rank-*.log"):
        with contextlib.suppress(ValueError):
            found[int(path.stem.removeprefix("rank-"))] = tail(path, LOG_TAIL)
    return found


def storable(text: str) -> str:
    """The text with U+FFFD for a NUL, which PostgreSQL refuses; decoding has replaced all else that does not fit."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


@dataclass(frozen=True, slots=True)
class Folder:
    """One attempt's folder. All calls block, briefly."""

    path: Path

    @property
    def lock(self) -> Path:
        """Locked (flock) by every process of the attempt; holds the launcher's pid."""
        return self.path / "lock"

    @property
    def log(self) -> Path:
        """The folder of the ranks' logs."""
        return self.path / "log"

    @property
    def spec(self) -> Path:
        """The attempt's order."""
        return self.path / "spec.json"

    @property
    def token(self) -> Path:
        """The token that the launcher reports with; only its owner reads it."""
        return self.path / "token"

    @property
    def exit(self) -> Path:
        """The launcher's last words."""
        return self.path / "exit.json"

    @property
    def launched(self) -> Path:
        """The pid that the launcher was given; proves nothing, but finds one that hangs before it wrote its own."""
        return self.path / "launched"

    @property
    def asked(self) -> Path:
        """Its mtime is when the attempt is to be killed, 0 until it is asked to stop: that needs no room on disk."""
        return self.path / "stop"

    @property
    def launcher_log(self) -> Path:
        """What the launcher itself printed."""
        return self.log / "launcher.log"

    @contextlib.contextmanager
    def locked(self) -> Iterator[int | None]:
        """The lock's descriptor, held; None if a process of the attempt holds it."""
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield descriptor
        finally:
            os.close(descriptor)

    def alive(self) -> bool:
        """Whether a process of the attempt lives."""
        try:
            descriptor = os.open(self.lock, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # Shared, so that two looks at the same moment do not take each other for a worker.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def pid(self) -> int | None:
        """The launcher's, which is also its process group's; None: it did not come so far."""
        return _number(self.lock)

    def order(self) -> Order | None:
        """The order that was given; None: none was."""
        with contextlib.suppress(FileNotFoundError):
            return Order.model_validate_json(self.spec.read_bytes())
        return None

    def uid(self) -> str:
        """Tells this folder from one of the same name that was there before."""
        stat = self.spec.stat()
        return f"{stat.st_ino:x}-{stat.st_mtime_ns:x}"

    def observe(self) -> Observation:
        """What the files prove now."""
        # The lock first: an attempt that is seen dead has written all it ever will.
        alive, pid, over = self.alive(), self.pid(), self.exit.exists()
        if alive:
            return Observation(exists=True, alive=True, orphaned=pid is not None and not _leads(pid), uid=self.uid())
        if over:
            return self._over()
        if pid is None:
            return Observation(exists=False)
        words = self.last_words()
        message = "its launcher was killed" + (f"; its last words: {words}" if words else "")
        return Observation(exists=True, reason=Reason.KILLED, message=message, uid=self.uid())

    def _over(self) -> Observation:
        ended = datetime.fromtimestamp(self.exit.stat().st_mtime, UTC)
        try:
            words = Termination.model_validate_json(self.exit.read_bytes())
        except ValidationError:
            return Observation(
                exists=True,
                reason=Reason.KILLED,
                message="its exit.json cannot be read",
                uid=self.uid(),
                ended_at=ended,
            )
        words = words.model_copy(update={"message": storable(words.message)})
        return Observation(
            exists=True, exit_code=words.exit_code, termination=words, message=words.message, uid=self.uid(),
            ended_at=ended,
        )  # fmt: skip

    def last_words(self) -> str:
        """The end of what the launcher itself printed."""
        return storable(tail(self.launcher_log, _WORDS_TAIL).content.decode(errors="replace")).strip()

    def stop(self, grace: float) -> None:
        """SIGTERM to the launcher at the first call; SIGKILL to all of the attempt once `grace` seconds are over.

        Call it again until the attempt is dead. The time is kept in a file, so it runs on through a restart of ours.
        """
        # Without any pid it is a launcher that was just forked: a later call finds it.
        pid = self.pid() or _number(self.launched)
        if pid is None or not self.alive():
            return
        now, before = time.time(), self._kill_at()
        if before is None:
            _send(pid, signal.SIGTERM)
        # Not later than now + grace, so that a clock that was set back delays nothing for long.
        kill_at = now + grace if before is None else min(before, now + grace)
        if kill_at != before:
            os.utime(self.asked, (kill_at, kill_at))
        # While anybody holds the lock the group is not empty, so its number is nobody else's.
        if now >= kill_at and self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _kill_at(self) -> float | None:
        """When the attempt is to be killed, in seconds since 1970; None: nobody has asked it to stop."""
        return self.asked.stat().st_mtime or None

    def logs(self) -> dict[int, LogEnd]:
        """The end of each rank's log, by rank."""
        return rank_logs(self.log)

    def remove(self) -> bool:
        """Removes the folder of an attempt that is over. False: it still lives."""
        if not self.path.exists():
            return True
        with self.locked() as descriptor:
            if descriptor is None:
                return False
            # First out of sight, in one step: half a folder would look like an attempt that never started.
            gone = self.path.with_name(f".removed-{self.path.name}")
            shutil.rmtree(gone, ignore_errors=True)
            self.path.replace(gone)
        shutil.rmtree(gone)
        return True


def _number(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(path.read_text())
    return None


def _leads(pid: int) -> bool:
    """Whether the process is there and is no zombie."""
    try:
        return bool(psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
    except psutil.NoSuchProcess:
        return False


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
