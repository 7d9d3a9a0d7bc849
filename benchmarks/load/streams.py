"""Event streams: many at once, and how soon each is told of a change."""

import asyncio
import math
import time
from urllib.parse import urlsplit

from benchmarks.load.reports import Worker
from benchmarks.load.table import Table, quantile, quantiles
from benchmarks.load.world import Spent, World

TARGET = 1.0
# Changes a second, where each is of another job.
_RATE = 100
# Seconds within which what is told late is still waited for.
_PATIENCE = 20.0


class Watcher:
    """One open stream, which knows when a message was seen on it."""

    def __init__(self, world: World, job: str) -> None:
        self._world, self.job = world, job
        self.seen: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()

    async def open(self) -> None:
        """Returns once it has shown what was there."""
        self._task = asyncio.create_task(self._read())
        opened = asyncio.create_task(self._opened.wait())
        async with asyncio.timeout(60):
            await asyncio.wait([self._task, opened], return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            await self._task
            raise RuntimeError(f"the stream of {self.job} ended")

    async def close(self) -> None:
        """Ends it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        address = urlsplit(self._world.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            head = f"GET /v1/jobs/{self.job}/events/stream HTTP/1.1\r\nHost: {address.netloc}\r\n{self._world.key}\r\n"
            writer.write(head.encode())
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200"), answer
            while line := await reader.readline():
                if b'"message":"' in line:
                    now = time.perf_counter()
                    self.seen.setdefault(line.partition(b'"message":"')[2].partition(b'"')[0].decode(), now)
                    self._opened.set()
        finally:
            writer.close()


async def opened(world: World, jobs: list[str], table: Table) -> list[Watcher]:
    """A stream on each of the jobs, which may be the same."""
    before, spent, began = world.rss, Spent(world), time.perf_counter()
    watchers = [Watcher(world, job) for job in jobs]
    for start in range(0, len(watchers), 50):
        await asyncio.gather(*(watcher.open() for watcher in watchers[start : start + 50]))
    table.note("opened within", f"{time.perf_counter() - began:.1f} s; {spent}")
    grown = world.rss - before
    table.note("memory", f"{grown:.0f} MiB more: {1024 * grown / len(jobs):.0f} KiB a stream")
    idle = Spent(world)
    await asyncio.sleep(min(5.0, len(jobs) / 50))
    table.note("CPU while nothing happens", idle)
    return watchers


async def closed(watchers: list[Watcher]) -> None:
    """Ends them all."""
    await asyncio.gather(*(watcher.close() for watcher in watchers))


async def each_its_own(world: World, workers: list[Worker], table: Table) -> None:
    """Every stream is of another job, and something happens in each of these."""
    table.head(f"Streams: {len(workers)}, each of another job; {_RATE} changes a second, one in each")
    watchers = await opened(world, [worker.job for worker in workers], table)
    spent, began = Spent(world), time.perf_counter()
    sent: dict[str, float] = {}

    async def change(number: int, worker: Worker) -> None:
        await asyncio.sleep(max(0.0, began + number / _RATE - time.perf_counter()))
        sent[worker.job] = await worker.deliver(f"own {number}")

    await asyncio.gather(*(change(number, worker) for number, worker in enumerate(workers)))
    found = {watcher.job: (watcher, f"own {number}") for number, watcher in enumerate(watchers)}
    took = await _told([(watcher, text, sent[job]) for job, (watcher, text) in found.items()])
    _tell(table, took, spent)
    await closed(watchers)


async def all_on_one(world: World, worker: Worker, count: int, times: int, table: Table) -> None:
    """All streams are of one job, in which something happens `times` times."""
    table.head(f"Streams: {count}, all of one job; {times} changes in it")
    watchers = await opened(world, [worker.job] * count, table)
    spent = Spent(world)
    took: list[float] = []
    for number in range(times):
        text = f"one {number}"
        began = await worker.deliver(text)
        took += await _told([(watcher, text, began) for watcher in watchers])
        await asyncio.sleep(0.7)
    _tell(table, took, spent)
    await closed(watchers)


async def _told(wanted: list[tuple[Watcher, str, float]]) -> list[float]:
    """How long each took since it was sent; infinite for what nobody was told of."""
    deadline = time.perf_counter() + _PATIENCE
    while any(text not in watcher.seen for watcher, text, _ in wanted) and time.perf_counter() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return [watcher.seen.get(text, math.inf) - sent for watcher, text, sent in wanted]


def _tell(table: Table, took: list[float], spent: Spent) -> None:
    lost = took.count(math.inf)
    table.check("never told", "0", lost, lost == 0)
    kept = [seconds for seconds in took if seconds < math.inf]
    table.timed("told after the report was sent", "p99 < 1000 ms", quantiles(kept), quantile(kept, 0.99) < TARGET)
    table.note("CPU", spent)
