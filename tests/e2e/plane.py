"""A real control plane in a process of its own: started, killed, stopped and started again on the same data."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx

from client import Client
from tests.holders import holders

T = TypeVar("T")


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], T], *, seconds: float = 60.0, what: str = "the condition") -> T:
    """The first true answer of `condition`. Fails the test after `seconds`, which is a limit for hangs."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come about within {seconds:.0f} s")
        time.sleep(0.05)
    return answer


def story(client: Client, job: str) -> str:
    """How a job and its attempts ended, and its events, for a person who must find out."""
    found = client.jobs.get(job)
    attempts = [f"attempt {a.number}: {a.reason} {a.exit_code} {a.message}" for a in client.jobs.attempts(job)]
    events = [f"{e.at:%H:%M:%S.%f} {e.type}: {e.message}" for e in client.jobs.events(job)]
    return "\n".join([f"{job} is {found.phase}: {found.reason} {found.message}", *attempts, *events])


class ControlPlane:
    """`python -m api --role all` on a data folder; `tree`: another one than this."""

    def __init__(self, data: Path, tree: Path | None = None, **settings: str):
        self.data, self._tree = data, tree
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = Client(self.url)
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "ControlPlane":
        """Starts it and waits until it is ready."""
        self.data.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "api", "--role", "all", "--port", str(self.port), "--data", str(self.data)]
        with (self.data / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._tree,
                env={**os.environ, **self._settings},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._ready, what=f"a ready control plane (its log: {self.data / 'server.log'})")
        return self

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.data / "server.log").read_text()[-4000:]
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """SIGKILL: no time for anything."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        return self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP: it neither answers nor refuses."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(how)
        status = self._process.wait(timeout=60)
        self._process = None
        return status

    def attempt_pids(self, job: str) -> list[int]:
        """The processes that hold the lock of any attempt of the job: launcher and ranks."""
        return holders(self.data.glob(f"attempts/{job}-a*/lock"))

    def close(self) -> None:
        """Ends the server and every attempt that it left running."""
        if self._process is not None:
            self.kill()
        for attempt in self.data.glob("attempts/*"):
            for pid in self.attempt_pids(attempt.name.rpartition("-a")[0]):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


@contextmanager
def control_plane(data: Path, **settings: str) -> Iterator[ControlPlane]:
    """A running control plane for the length of a `with`; nothing of it stays behind."""
    plane = ControlPlane(data, **settings)
    try:
        yield plane.start()
    finally:
        plane.close()
