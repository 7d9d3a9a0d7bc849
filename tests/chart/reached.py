"""A database of the tests, where pods reach it."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.kubernetes.fixtures import AnyCluster


@contextlib.contextmanager
def reachable(cluster: AnyCluster, url: str) -> Iterator[str]:
    """The URL of a database that is reached by a socket's file, at an address that pods reach."""
    parts = urlsplit(url)
    file = Path(parse_qs(parts.query)["host"][0]) / ".s.PGSQL.5432"

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(file))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=copy, args=ends, daemon=True).start()

    with socket.create_server((cluster.host_address, 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        address = "{}:{}".format(*listener.getsockname())
        yield f"postgresql://{parts.username}@{address}{parts.path}"
        listener.shutdown(socket.SHUT_RDWR)
