"""Programs that outlive the command that started them: recorded, found again, and stopped only while they are ours."""

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.cluster.machine import ClusterError

STOP_SECONDS = 5.0


def started_at(pid: int) -> str:
    """When a process began, in clock ticks since boot; empty for one that is over. With its pid: its identity."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class Record:
    """What was started: enough to start it again, and to know it from another process that got its pid."""

    command: list[str]
    environment: dict[str, str]
    pid: int
    started_at: str
    boot: str

    def alive(self) -> bool:
        return self.boot == _boot() and bool(self.started_at) and started_at(self.pid) == self.started_at


class Processes:
    """The programs of one cluster, by name: `<folder>/processes/NAME.json`, and `<folder>/log/NAME.log`."""

    def __init__(self, folder: Path) -> None:
        self._records = folder / "processes"
        self._logs = folder / "log"

    def start(self, name: str, command: list[str], environment: dict[str, str] | None = None) -> None:
        """Start a program in a session of its own, where no Ctrl-C of ours reaches it."""
        for folder in (self._records, self._logs):
            folder.mkdir(parents=True, exist_ok=True)
        with (self._logs / f"{name}.log").open("ab") as log:
            # Not waited for here: whoever reads the record may be another command.
            process = subprocess.Popen(
                command,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        record = Record(command, environment or {}, process.pid, started_at(process.pid), _boot())
        unfinished = self._records / f"{name}.unfinished"
        unfinished.write_text(json.dumps(asdict(record)))
        unfinished.rename(self._records / f"{name}.json")

    def again(self, name: str) -> None:
        """Start a program once more as it was started before; nothing if it runs.

        Raises:
            ClusterError: it was never started.
        """
        record = self.record(name)
        if record is None:
            raise ClusterError(f"{name} was never started in this cluster.")
        if not record.alive():
            self.start(name, record.command, record.environment)

    def record(self, name: str) -> Record | None:
        """What is known of a program, running or not."""
        try:
            return Record(**json.loads((self._records / f"{name}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def names(self) -> list[str]:
        """All that were started and not forgotten."""
        return sorted(file.stem for file in self._records.glob("*.json"))

    def alive(self, name: str) -> bool:
        """Whether it runs."""
        record = self.record(name)
        return record is not None and record.alive()

    def signal(self, name: str, number: signal.Signals) -> bool:
        """Send a signal, if the program is still that program. Says whether it was sent."""
        record = self.record(name)
        if record is None or not record.alive():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, number)
            return True
        return False

    def stop(self, name: str) -> None:
        """Ask it to end, insist after some seconds, and return when it is gone. Its record stays, for `again`."""
        record = self.record(name)
        if record is None:
            return
        self.signal(name, signal.SIGCONT)
        self.signal(name, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while record.alive():
            if time.monotonic() > deadline:
                self.signal(name, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(record.pid, os.WNOHANG)
            time.sleep(0.02)

    def last_words(self, name: str) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            return (self._logs / f"{name}.log").read_text(errors="replace").strip()[-800:]
        return ""
