"""Group commit on SQLite: small writes that have arrived together share one transaction, and one sync of the disk."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.engine import Connection

from api.store.sqlite import Turns

Result = TypeVar("Result")
Work = Callable[[Connection], Result]

# Writes in one group. While one commits, others wait their turn: so it is small.
_MOST = 32


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A write that nobody has done yet, and who waits for it."""

    work: Work[Any]
    answer: asyncio.Future[Any]


class Group:
    """Does writes in a thread of its own, those that wait together in one transaction.

    Every write has a savepoint: one that raises leaves nothing behind, and spoils no other. Nobody is answered before
    the commit, so an answered write lasts. Where the commit itself fails, all of the group raise its error.
    """

    def __init__(self, engine: Engine, turns: Turns) -> None:
        self._engine, self._turns = engine, turns
        self._thread = ThreadPoolExecutor(1, "sqlite-group")
        self._queue: deque[_Waiting] = deque()
        self._task: asyncio.Task[None] | None = None

    async def write(self, work: Work[Result]) -> Result:
        """What `work` gives, once it is committed. Raises what it raises, and what the database does.

        A caller that is cancelled meanwhile may or may not have written.
        """
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(work, answer))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain(), name="group commit")
        return await answer

    async def close(self) -> None:
        """Waits for the writes that were asked for, and ends the thread."""
        if self._task is not None:
            await asyncio.wait([self._task])
        self._thread.shutdown()
        self._engine.dispose()

    async def _drain(self) -> None:
        while self._queue:
            group: list[_Waiting] = []
            results: list[Any]
            try:
                async with self._turns.mine():
                    # Who came while we waited for our turn goes with us.
                    group = self._next()
                    works = [waiting.work for waiting in group]
                    results = await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, works)
            except Exception as error:
                group = group or self._next()
                results = [error] * len(group)
            for waiting, result in zip(group, results, strict=True):
                if waiting.answer.done():
                    continue
                if isinstance(result, Exception):
                    waiting.answer.set_exception(result)
                else:
                    waiting.answer.set_result(result)

    def _next(self) -> list[_Waiting]:
        return [self._queue.popleft() for _ in range(min(_MOST, len(self._queue)))]

    def _commit(self, works: Sequence[Work[Any]]) -> list[Any]:
        """In the thread: the result of each, or the exception that it raised."""
        results: list[Any] = []
        with self._engine.begin() as connection:
            for work in works:
                savepoint = connection.begin_nested()
                result: Any
                try:
                    result = work(connection)
                    savepoint.commit()
                except Exception as error:
                    if not _in_transaction(connection):
                        # A full disk, say, makes SQLite roll back the whole; a commit of nothing would succeed.
                        raise
                    savepoint.rollback()
                    result = error
                results.append(result)
        return results


def _in_transaction(connection: Connection) -> bool:
    driver = connection.connection.driver_connection
    return driver is not None and bool(driver.in_transaction)
