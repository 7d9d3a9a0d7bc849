"""A control plane of the demo's own, on loopback."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from client.api import Client
from client.problems import ApiError


@contextlib.contextmanager
def control_plane(data: Path, readable: list[Path]) -> Iterator[Client]:
    """A control plane on a free port of loopback, stopped at the end. Raises ApiError with its own last words."""
    port = _free_port(8000)
    log = data / "server.log"
    paths = os.pathsep.join(str(path) for path in readable)
    with log.open("ab") as file:
        command = [sys.executable, "-m", "api", "--role", "all", "--port", str(port), "--data", str(data)]
        # A session of its own: Ctrl-C is for the demo, which then stops the server in its own time.
        server = subprocess.Popen(
            command, stdout=file, stderr=file, start_new_session=True, env={**os.environ, "ALLOWED_PATHS": paths}
        )
    try:
        client = Client(f"http://127.0.0.1:{port}")
        _await_ready(client, server, log)
        yield client
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise ApiError("No port is free.")


def _await_ready(client: Client, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if server.poll() is not None:
            last = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise ApiError("The control plane did not start:\n  " + "\n  ".join(last))
        with contextlib.suppress(ApiError):
            if client.ready():
                return
        time.sleep(0.1)
    raise ApiError(f"The control plane did not become ready within a minute; {log} says more.")
