"""What this machine's own processes say of attempts: which are live, and that no job has two.

Live is an attempt of which a launcher runs that the control plane has answered: from then on it writes. It begins with
its ranks' logs in the store, so that their folder is the proof.
"""

import json
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

_EVERY = 0.2


@dataclass
class Observer:
    """Looks at all processes five times a second, from `start` to `stop`."""

    store: Path
    twice: list[str] = field(default_factory=list)
    """A sentence for each look that found two live attempts of a job."""
    seen: set[tuple[str, int]] = field(default_factory=set)
    """Every attempt that was ever live."""
    _known: dict[tuple[int, str], tuple[str, int] | None] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> "Observer":
        """Begins to look."""
        self._thread = threading.Thread(target=self._look, name="observer", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Looks no more."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(_EVERY):
            live: defaultdict[str, set[int]] = defaultdict(set)
            for job, attempt in self._running():
                if (self.store / "jobs" / job / f"a{attempt}" / "log").exists():
                    live[job].add(attempt)
                    self.seen.add((job, attempt))
            for job, attempts in live.items():
                if len(attempts) > 1:
                    self.twice.append(f"{time.strftime('%H:%M:%S')}: {job} has live attempts {sorted(attempts)}")

    def _running(self) -> set[tuple[str, int]]:
        """The attempts of which a launcher or a rank runs."""
        found: dict[tuple[int, str], tuple[str, int] | None] = {}
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    # A number may be given to another process; not in the same tick of the clock.
                    key = (int(process.name), (process / "stat").read_text().rpartition(")")[2].split()[19])
                    found[key] = self._known[key] if key in self._known else _attempt(process)
                except OSError:
                    continue
        self._known = found
        return {attempt for attempt in found.values() if attempt is not None}


def _attempt(process: Path) -> tuple[str, int] | None:
    """The attempt that a process is of, by the order that lies in its own file system; None: it is no worker."""
    arguments = (process / "cmdline").read_bytes().split(b"\0")
    if b"--order" not in arguments:
        return None
    file = arguments[arguments.index(b"--order") + 1].decode()
    try:
        order = json.loads((process / "root" / file.lstrip("/")).read_text())
    except (OSError, ValueError):
        return None
    return order["job"], order["attempt"]
