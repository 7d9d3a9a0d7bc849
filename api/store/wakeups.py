"""Waking the operator: at once in one process, by NOTIFY between processes on PostgreSQL."""

import asyncio
import contextlib
import logging
import time
from typing import Any

import asyncpg

from api.store import postgres
from api.store.database import Database
from api.store.trouble import sentence

CHANNEL = "rlhf_jobs"
# For the one connection that listens and notifies: it is asked for next to nothing.
_LIMITS = postgres.Limits(connections=1, statement=2.0, lock=2.0)
# Seconds for a NOTIFY, for which somebody waits whose work is done.
_PATIENCE = 2.0
# Seconds between two looks whether it still lives, and between two tries to make it anew.
_LOOK, _ANEW = 30.0, 2.0
log = logging.getLogger(__name__)


class Wakeups:
    """Who commits an intent calls `wake`; the operator awaits `wait`. A lost one costs a poll, never a job."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._woken: set[str] = set()
        self._event = asyncio.Event()
        self._connection: asyncpg.Connection[Any] | None = None
        self._lock = asyncio.Lock()
        self._listens = False
        self._looking: asyncio.Task[None] | None = None
        self._next_look = self._next_try = 0.0

    async def wake(self, job_id: str) -> None:
        """Says that the job is worth a look. Call it after the commit."""
        self._note(job_id)
        if self._database.sqlite:
            return
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._ask("SELECT pg_notify($1, $2)", CHANNEL, job_id)
        except postgres.ERRORS as error:
            log.warning("no NOTIFY was sent, the operator's poll will see it: %s", sentence(error))

    def hint(self, job_id: str) -> None:
        """Wakes the operator of this process alone. Call it in the event loop's thread."""
        self._note(job_id)

    async def wait(self, timeout: float) -> set[str]:
        """The jobs that were woken, as soon as there are any; an empty set after `timeout` seconds."""
        self._keep_listening()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._event.wait()
        woken, self._woken = self._woken, set()
        self._event.clear()
        return woken

    async def listen(self) -> None:
        """Hears other processes' wake-ups from now on, for as long as somebody waits; no matter on SQLite."""
        if not self._database.sqlite:
            self._listens = True
            await self._look()

    async def close(self) -> None:
        """Closes the connection, if there is one."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        if self._connection is not None:
            await self._connection.close(timeout=2)

    def _keep_listening(self) -> None:
        """Beside the wait, which may end at any moment."""
        due = self._next_try if self._connection is None or self._connection.is_closed() else self._next_look
        if self._listens and time.monotonic() >= due and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look(), name="wake-ups")

    async def _look(self) -> None:
        """Sees to it that there is a connection which lives: nothing is heard on one that was cut in silence."""
        try:
            await self._ask("SELECT 1")
        except postgres.ERRORS as error:
            log.warning(
                "no wake-ups of other processes are heard, the poll does without: %s", str(error) or "no answer"
            )
        self._next_look, self._next_try = time.monotonic() + _LOOK, time.monotonic() + _ANEW

    async def _ask(self, statement: str, *values: str) -> None:
        async with self._lock:
            if self._connection is None or self._connection.is_closed():
                self._connection = await postgres.connect(self._database.url, _LIMITS)
                await self._connection.add_listener(CHANNEL, lambda *heard: self._note(str(heard[3])))
            answered = False
            try:
                await self._connection.execute(statement, *values)
                answered = True
            finally:
                if not answered:
                    self._connection.terminate()

    def _note(self, job_id: str) -> None:
        self._woken.add(job_id)
        self._event.set()
