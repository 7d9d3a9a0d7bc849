"""Jobs whose workers report, as a real worker does: steps with seven curves each, an event now and then."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from benchmarks.api_load import Caller, Period, every
from benchmarks.load.fill import asked, do
from benchmarks.load.table import Table, quantile, quantiles
from benchmarks.load.world import Spent, World

CURVES = (
    "train/loss", "train/lr", "train/grad_norm", "train/tokens", "time/forward", "time/backward", "time/step",
)  # fmt: skip
# Of a report, one in so many has an event.
_EVENTFUL = 6


@dataclass
class Worker:
    """One attempt's launcher, with a connection that it keeps."""

    job: str
    token: str
    caller: Caller
    steps: int
    """That it makes between two reports."""
    seq: int = 0
    step: int = 0
    events: int = 0
    failures: list[str] = field(default_factory=list)

    async def report(self, *, note: bool = True, event: str | None = None) -> Any:
        """One report; what it holds is counted once it is acknowledged."""
        now = datetime.now(UTC).isoformat()
        made = range(self.step + 1, self.step + self.steps + 1)
        happened = [{"type": "Evaluated", "message": event, "at": now}] if event is not None else []
        body = {
            "version": 1,
            "seq": self.seq + 1,
            "launcher": "load",
            "activity": "training",
            "progress": {"step": made[-1], "steps": 100_000, "tokens": made[-1] * 4096, "tokens_per_second": 812.5,
                         "mark": made[-1]},
            "metrics": [{"name": name, "step": step, "value": random.random(), "at": now}
                        for step in made for name in CURVES],
            "events": happened,
        }  # fmt: skip
        headers = f"Authorization: Bearer {self.token}\r\nContent-Type: application/json\r\n"
        answer = await self.caller.call("POST", "/worker/v1/report", json.dumps(body).encode(), headers, note)
        self.seq, self.step, self.events = self.seq + 1, made[-1], self.events + len(happened)
        return answer

    async def deliver(self, event: str) -> float:
        """One report, sent again while too many are sent, as workers do; gives when the one was sent that was taken."""
        while True:
            began = time.perf_counter()
            try:
                await self.report(event=event)
            except RuntimeError as error:
                if " 503 " not in str(error):
                    raise
                await asyncio.sleep(random.uniform(0.5, 2.0))
            else:
                return began

    async def try_to(self) -> None:
        """A report that may fail."""
        try:
            await self.report(event="loss 1.25" if (self.seq + 1) % _EVENTFUL == 0 else None)
        except (RuntimeError, OSError, EOFError) as error:
            self.failures.append(str(error))


def workers(world: World, issued: list[tuple[str, str]], steps: int) -> list[Worker]:
    """Of all these jobs."""
    return [Worker(job, token, Caller(world.worker_url), steps) for job, token in issued]


@asynccontextmanager
async def reporting(all_of_them: list[Worker], interval: float) -> AsyncIterator[None]:
    """For the length of the block all of them report, every `interval` seconds."""
    period = Period()
    tasks = asyncio.gather(*(every(interval, period, worker.try_to) for worker in all_of_them))
    try:
        yield
    finally:
        period.until = time.perf_counter()
        await tasks


async def begin(world: World, all_of_them: list[Worker]) -> None:
    """Their first reports; then the operator would see that they run."""
    places = asyncio.Semaphore(8)

    async def first(worker: Worker) -> None:
        async with places:
            await worker.report(note=False)

    await asyncio.gather(*(first(worker) for worker in all_of_them))
    await do(world, "UPDATE jobs SET phase = 'running' WHERE phase = 'starting'")
    # As later on: a first report makes more of itself than those that follow.
    await do(world, "VACUUM ANALYZE jobs, attempts, metrics")


@dataclass
class Reports:
    """What is measured of reports in one period."""

    world: World
    workers: list[Worker]
    interval: float

    def __post_init__(self) -> None:
        self._since, self._spent = time.perf_counter(), Spent(self.world)
        self._seq = sum(worker.seq for worker in self.workers)

    def tell(self, table: Table) -> None:
        """From when it was made until now."""
        seconds = time.perf_counter() - self._since
        took = list(itertools.chain.from_iterable(worker.caller.seconds(self._since) for worker in self.workers))
        done = sum(worker.seq for worker in self.workers) - self._seq
        wanted = len(self.workers) / self.interval
        failures = [failure for worker in self.workers for failure in worker.failures]
        rate = done / seconds
        table.timed("reports a second", f">= {0.97 * wanted:.1f}", f"{rate:.1f} of {wanted:.1f}", rate >= 0.97 * wanted)
        table.timed("a report takes", "p95 < 1000 ms", quantiles(took), quantile(took, 0.95) < 1.0)
        said = f"{len(failures)}{': ' + failures[0][:200] if failures else ''}"
        table.check("errors", "0", said, not failures)
        table.note("CPU", self._spent)
        table.note("API, resident", f"{self.world.rss:.0f} MiB")


async def all_stored(world: World, all_of_them: list[Worker], table: Table) -> None:
    """Whether everything is there that was acknowledged."""
    points = sum(worker.step for worker in all_of_them) * len(CURVES)
    events = sum(worker.events for worker in all_of_them)
    stored = await asked(world, "SELECT count(*) FROM metrics")
    told = await asked(world, "SELECT count(*) FROM events WHERE source = 'worker'")
    table.check("points stored", f"{points}", stored, stored == points)
    table.check("events stored", f"{events}", told, told == events)
