"""Lists of jobs: the first page, later ones, and all that they can be narrowed by."""

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from api.store.pages import encode
from benchmarks.api_load import Caller, Period, every
from benchmarks.load.table import Table, quantile, quantiles
from benchmarks.load.world import World

TARGET = 0.1


def kinds(jobs: int) -> dict[str, str]:
    """What is asked, each with its query."""

    def somewhere() -> str:
        at = datetime.now(UTC) - timedelta(seconds=30 * random.randrange(jobs))
        return quote(encode(at, "job-000000000000"))

    number = random.randrange(jobs)
    return {
        "the first page": "",
        "a page by its cursor": f"after={somewhere()}",
        "phase: running": "phase=running",
        "phase: paused (one in 500)": "phase=paused",
        "phase: paused, by a cursor": f"phase=paused&after={somewhere()}",
        "phase: failed or cancelled": "phase=failed&phase=cancelled",
        "phase: queued (none)": "phase=queued",
        "name (one in 1,000)": f"name=dolly-{number % 1000}",
        "name (none)": "name=no-such-name",
        "label (one in ten)": f"metadata.team=team-{number % 9}",
        "label (one job)": f"metadata.run=run-{number}",
        "label (one in 10,000)": "metadata.rare=yes",
        "label (none)": "metadata.team=no-such-team",
        "label and phase": f"metadata.team=team-{number % 9}&phase=failed",
        "stage (one in 10,000)": "stage=distill",
        "stage (none)": "stage=ppo",
        "oldest first": "order=created_at",
        "another project": "project",
    }


class Lists:
    """People who look at lists, one kind after the other."""

    def __init__(self, world: World, jobs: int, callers: int) -> None:
        self._world, self._jobs = world, jobs
        self._callers = [Caller(world.url) for _ in range(callers)]
        self.took: dict[str, list[float]] = {kind: [] for kind in kinds(jobs)}
        self.failures = 0

    async def once(self, caller: Caller) -> None:
        """Each kind once, by one of them."""
        for kind, query in kinds(self._jobs).items():
            await self._ask(caller, kind, query)

    async def rounds(self, count: int) -> None:
        """All kinds so often, by one who waits for each answer."""
        await self.once(self._callers[0])
        self.took = {kind: [] for kind in self.took}
        for _ in range(count):
            await self.once(self._callers[0])

    async def during(self, seconds: float) -> None:
        """For so long, each of them looks at a list four times a second."""
        period = Period()
        period.until = time.perf_counter() + seconds

        async def looking(caller: Caller) -> None:
            waiting = list(kinds(self._jobs).items())
            random.shuffle(waiting)

            async def look() -> None:
                nonlocal waiting
                waiting = waiting or list(kinds(self._jobs).items())
                await self._ask(caller, *waiting.pop())

            await every(0.25, period, look)

        await asyncio.gather(*(looking(caller) for caller in self._callers))

    def tell(self, table: Table, *, each: bool) -> None:
        """All together, and `each` kind by itself."""
        everything = [seconds for took in self.took.values() for seconds in took]
        table.timed("a list of 50", "p95 < 100 ms", quantiles(everything), quantile(everything, 0.95) < TARGET)
        table.check("  errors", "0", self.failures, self.failures == 0)
        if each:
            for kind, took in self.took.items():
                table.timed(f"  {kind}", "p95 < 100 ms", quantiles(took), quantile(took, 0.95) < TARGET)

    async def _ask(self, caller: Caller, kind: str, query: str) -> None:
        headers = self._world.key
        if query == "project":
            query, headers = "", headers + "Rlhf-Project: other\r\n"
        began = time.perf_counter()
        try:
            await caller.call("GET", f"/v1/jobs?{query}", b"", headers)
        except RuntimeError:
            self.failures += 1
        self.took[kind].append(time.perf_counter() - began)
