"""Waking the operator: at once in one process, by NOTIFY between processes on PostgreSQL."""

import asyncio
import contextlib
import logging
from typing import Any

import asyncpg

from api.store.database import Database

CHANNEL = "rlhf_jobs"
log = logging.getLogger(__name__)


class Wakeups:
    """Who commits an intent calls `wake`; the operator awaits `wait`. A lost one costs a poll, never a job."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._woken: set[str] = set()
        self._event = asyncio.Event()
        self._connection: asyncpg.Connection[Any] | None = None
        self._lock = asyncio.Lock()

    async def wake(self, job_id: str) -> None:
        """Says that the job is worth a look. Call it after the commit."""
        self._note(job_id)
        if self._database.sqlite:
            return
        try:
            connection = await self._connected()
            async with self._lock:
                await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, job_id)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            log.warning("no NOTIFY was sent, the operator's poll will see it: %s", error)

    def hint(self, job_id: str) -> None:
        """Wakes the operator of this process alone. Call it in the event loop's thread."""
        self._note(job_id)

    async def wait(self, timeout: float) -> set[str]:
        """The jobs that were woken, as soon as there are any; an empty set after `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._event.wait()
        woken, self._woken = self._woken, set()
        self._event.clear()
        return woken

    async def listen(self) -> None:
        """Hears other processes' wake-ups from now on; no matter on SQLite."""
        if not self._database.sqlite:
            await self._connected()

    async def close(self) -> None:
        """Closes the connection, if there is one."""
        if self._connection is not None:
            await self._connection.close(timeout=2)

    def _note(self, job_id: str) -> None:
        self._woken.add(job_id)
        self._event.set()

    async def _connected(self) -> "asyncpg.Connection[Any]":
        async with self._lock:
            if self._connection is None or self._connection.is_closed():
                url = self._database.url.set(drivername="postgresql").render_as_string(hide_password=False)
                self._connection = await asyncpg.connect(url, timeout=5)
                await self._connection.add_listener(CHANNEL, lambda *heard: self._note(str(heard[3])))
            return self._connection
