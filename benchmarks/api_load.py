"""The API under load: `python -m benchmarks.api_load [--jobs 200] [--watchers 50] [--seconds 20]`.

A whole control plane on SQLite, its operator included, in a process of its own; jobs whose workers report every 2 s,
each with a point of five curves and its progress, and watchers that ask twice a second what `rlhf watch` asks: the job,
and where it has moved on its new events and losses. The workers are this client, which holds each attempt's lock as a
worker does, so that the operator sees them live and looks after them. Prints, asserts nothing.
"""

import argparse
import asyncio
import fcntl
import itertools
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from sqlalchemy import func, select, update

from api.operator.folder import Folder
from api.operator.local import LocalCluster
from api.settings import load as settings
from api.store import jobs
from api.store.database import Database, utcnow
from api.store.migrate import migrate
from api.store.tables import AttemptRow, JobRow
from api.tokens import Tokens
from worker.contract.check import parse_spec

CURVES = ("train/loss", "train/lr", "train/grad_norm", "train/tokens", "train/tokens_per_second")
REPORT_EVERY = 2.0
POLL_EVERY = 0.5
SPEC = {"stage": {"type": "rehearse"}}


async def start(data: Path) -> tuple[asyncio.subprocess.Process, str]:
    """A control plane with its operator. Gives it with its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api", "--role", "all", "--port", "0", "--data", str(data),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "DATABASE_URL": ""},
    )  # fmt: skip
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    return process, line.split(" listens on ")[1].split(" ")[0]


async def make_jobs(data: Path, count: int) -> list[tuple[str, str]]:
    """Jobs that are starting, each with its attempt's token."""
    database = Database(settings(data=data, database_url="").database)
    await migrate(database)
    spec = parse_spec(SPEC)
    async with database.transaction() as session:
        made = [(await jobs.create(session, spec, {}, project="default"))[0].id for _ in range(count)]
        for job in made:
            session.add(AttemptRow(job_id=job, number=1, object_name=f"{job}-a1", created_at=utcnow()))
        await session.execute(update(JobRow).values(phase="starting", attempt=1))
    tokens = Tokens(database)
    issued = [(job, await tokens.issue(job, 1)) for job in made]
    await database.dispose()
    cluster = LocalCluster(data, (data / "store").as_uri(), data / "worker-url")
    for job in made:
        folder = Folder(data / "attempts" / f"{job}-a1")
        folder.path.mkdir(parents=True)
        folder.spec.write_text(cluster.order(job, 1, spec, {}).model_dump_json())
        # Held until this process ends: an attempt lives as long as anybody holds its lock.
        fcntl.flock(os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), fcntl.LOCK_EX)
    return issued


async def running(data: Path) -> int:
    """How many jobs run."""
    database = Database(settings(data=data, database_url="").database)
    async with database.reading() as session:
        count = await session.scalar(select(func.count()).select_from(JobRow).where(JobRow.phase == "running"))
    await database.dispose()
    return count or 0


async def all_running(data: Path, count: int, within: float) -> float:
    """Waits until all jobs run, and gives the seconds that took. Raises TimeoutError."""
    began = time.perf_counter()
    async with asyncio.timeout(within):
        while await running(data) < count:  # noqa: ASYNC110 (another process changes it)
            await asyncio.sleep(POLL_EVERY)
    return time.perf_counter() - began


class Period:
    """When the load ends, once that is known."""

    until = math.inf


class Caller:
    """One connection that is kept. A whole HTTP client would take as much of the two cores as what is measured."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._calls: list[tuple[float, float]] = []

    def seconds(self, since: float) -> list[float]:
        """How long each call took that began after `since`."""
        return [took for began, took in self._calls if began >= since]

    async def call(self, method: str, path: str, body: bytes = b"", headers: str = "", note: bool = True) -> Any:
        """Makes a request and gives its answer's JSON. With `note` keeps how long it took. Raises RuntimeError."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._address.hostname, self._address.port)
        reader, writer = self._streams
        host = self._address.netloc
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        began = time.perf_counter()
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(answer.partition("content-length: ")[2].partition("\r\n")[0])
        text = await reader.readexactly(length)
        if note:
            self._calls.append((began, time.perf_counter() - began))
        if not answer.startswith("http/1.1 200 "):
            raise RuntimeError(f"{method} {path}: {answer.partition(chr(13))[0]} {text.decode()}")
        return json.loads(text)


async def every(seconds: float, period: Period, act: Callable[[], Awaitable[None]]) -> None:
    """Does `act` at a steady pace, from a random moment on; a late one delays those after it."""
    await asyncio.sleep(random.random() * seconds)
    while (began := time.perf_counter()) < period.until:
        await act()
        await asyncio.sleep(max(0.0, min(period.until, began + seconds) - time.perf_counter()))


async def work(caller: Caller, token: str, period: Period) -> None:
    """One worker: reports every 2 s."""
    headers = f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    numbers = itertools.count(1)

    async def report() -> None:
        seq = next(numbers)
        now = datetime.now(UTC).isoformat()
        body = {
            "seq": seq,
            "activity": "training",
            "progress": {"step": seq, "steps": 1000, "tokens": seq * 1000, "mark": seq},
            "metrics": [{"name": name, "step": seq, "value": random.random(), "at": now} for name in CURVES],
        }
        await caller.call("POST", "/worker/v1/report", json.dumps(body).encode(), headers)

    await every(REPORT_EVERY, period, report)


async def watch(caller: Caller, job: str, period: Period) -> None:
    """One watcher: asks twice a second what `rlhf watch` asks (client.commands.followed). Only how long the job itself
    took is kept."""
    event = point = 0
    known: list[Any] = []

    async def look() -> None:
        nonlocal event, point, known
        seen = await caller.call("GET", f"/v1/jobs/{job}")
        if seen["event_count"] > event:
            events = await caller.call("GET", f"/v1/jobs/{job}/events?after={event}", note=False)
            event = max([event, *(e["number"] for e in events["data"])])
        signs = [seen[sign] for sign in ("phase", "retry_requested", "attempt", "progress", "event_count")]
        if signs != known:
            points = await caller.call("GET", f"/v1/jobs/{job}/metrics?name=train/loss&after={point}", note=False)
            point = max([point, *(p["id"] for p in points["data"])])
            known = signs

    await every(POLL_EVERY, period, look)


def show(what: str, seconds: list[float], period: float) -> None:
    """Rate and percentiles of one kind of call."""
    cuts = statistics.quantiles(seconds, n=100)
    print(
        f"{what:<22} {len(seconds) / period:7.1f} /s   p50 {1000 * cuts[49]:6.1f} ms   "
        f"p95 {1000 * cuts[94]:6.1f} ms   p99 {1000 * cuts[98]:6.1f} ms   max {1000 * max(seconds):6.1f} ms"
    )


async def main() -> None:
    """Runs the load and prints what was seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--watchers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        issued = await make_jobs(data, given.jobs)
        process, url = await start(data)
        try:
            worker_url = (data / "worker-url").read_text()
            workers = [(Caller(worker_url), token) for _, token in issued]
            watchers = [Caller(url) for _ in range(given.watchers)]
            names = [job for job, _ in issued]
            server, own = psutil.Process(process.pid), psutil.Process()

            def cpu() -> list[float]:
                return [sum(process.cpu_times()[:2]) for process in (server, own)]

            # All workers report for the first time within one period. What is measured begins when all jobs run.
            period = Period()
            load = asyncio.gather(
                *(work(caller, token, period) for caller, token in workers),
                *(watch(caller, random.choice(names), period) for caller in watchers),
            )
            starting = await all_running(data, given.jobs, within=120)
            await asyncio.sleep(REPORT_EVERY)
            since, before = time.perf_counter(), cpu()
            period.until = since + given.seconds
            await load
            used = [100 * (after - b) / given.seconds for after, b in zip(cpu(), before, strict=True)]
            if (left := await running(data)) < given.jobs:
                raise RuntimeError(f"only {left} of {given.jobs} jobs ran at the end")
        finally:
            process.terminate()
            await process.wait()
    print(f"{given.jobs} jobs, {given.watchers} watchers, {given.seconds:g} s, {os.cpu_count()} cores, SQLite")
    print(f"{'all jobs running':<22} {starting:7.1f} s after the first report")
    show("GET /v1/jobs/{id}", [took for caller in watchers for took in caller.seconds(since)], given.seconds)
    show("POST /worker/v1/report", [took for caller, _ in workers for took in caller.seconds(since)], given.seconds)
    print(
        f"{'control plane':<22} {used[0]:7.1f} % of a core; this client {used[1]:.1f} %; load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    asyncio.run(main())
