"""The API under load: `python benchmarks/api_load.py [--jobs 200] [--watchers 50] [--seconds 20]`.

A control plane on SQLite, in a process of its own; jobs whose workers report every 2 s, each with a point of five
curves and its progress, and watchers that poll `GET /v1/jobs/{id}` twice a second. Prints, asserts nothing.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
from sqlalchemy import update

from api.settings import load
from api.store.database import Database, utcnow
from api.store.tables import AttemptRow, JobRow
from api.tokens import Tokens

CURVES = ("train/loss", "train/lr", "train/grad_norm", "train/tokens", "train/tokens_per_second")
REPORT_EVERY = 2.0
POLL_EVERY = 0.5
SPEC = {"stage": {"type": "rehearse"}}


async def start(data: Path) -> tuple[asyncio.subprocess.Process, str]:
    """A control plane without an operator: nothing else is measured. Gives it with its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api", "--role", "api", "--port", "0", "--data", str(data),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "DATABASE_URL": ""},
    )  # fmt: skip
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    return process, line.split(" listens on ")[1].split(" ")[0]


async def make_jobs(url: str, data: Path, count: int) -> list[tuple[str, str]]:
    """Jobs that are starting, each with its attempt's token."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        jobs = [(await http.post("/v1/jobs", json=SPEC)).json()["id"] for _ in range(count)]
    database = Database(load(data=data, database_url="").database)
    async with database.transaction() as session:
        for job in jobs:
            session.add(AttemptRow(job_id=job, number=1, object_name=f"{job}-a1", created_at=utcnow()))
        await session.execute(update(JobRow).values(phase="starting", attempt=1))
    tokens = Tokens(database)
    issued = [(job, await tokens.issue(job, 1)) for job in jobs]
    await database.dispose()
    return issued


async def report(http: httpx.AsyncClient, token: str, until: float, seconds: list[float]) -> None:
    """One worker: reports every 2 s, from a random moment on."""
    await asyncio.sleep(random.random() * REPORT_EVERY)
    seq = 0
    while time.perf_counter() < until:
        seq += 1
        now = datetime.now(UTC).isoformat()
        body = {
            "seq": seq,
            "activity": "training",
            "progress": {"step": seq, "steps": 1000, "tokens": seq * 1000, "mark": seq},
            "metrics": [{"name": name, "step": seq, "value": random.random(), "at": now} for name in CURVES],
        }
        began = time.perf_counter()
        answer = await http.post("/worker/v1/report", json=body, headers={"Authorization": f"Bearer {token}"})
        seconds.append(time.perf_counter() - began)
        answer.raise_for_status()
        await asyncio.sleep(max(0.0, REPORT_EVERY - (time.perf_counter() - began)))


async def watch(http: httpx.AsyncClient, jobs: list[str], until: float, seconds: list[float]) -> None:
    """One watcher: reads one job after another."""
    await asyncio.sleep(random.random() * POLL_EVERY)
    while time.perf_counter() < until:
        began = time.perf_counter()
        (await http.get(f"/v1/jobs/{random.choice(jobs)}")).raise_for_status()
        seconds.append(time.perf_counter() - began)
        await asyncio.sleep(max(0.0, POLL_EVERY - (time.perf_counter() - began)))


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
        process, url = await start(data)
        try:
            jobs = await make_jobs(url, data, given.jobs)
            reports: list[float] = []
            reads: list[float] = []
            limits = httpx.Limits(max_connections=given.jobs + given.watchers)
            worker_url = (data / "worker-url").read_text()
            server = psutil.Process(process.pid)
            async with (
                httpx.AsyncClient(base_url=worker_url, timeout=30, limits=limits) as workers,
                httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as http,
            ):
                cpu = sum(server.cpu_times()[:2])
                until = time.perf_counter() + given.seconds
                names = [job for job, _ in jobs]
                await asyncio.gather(
                    *(report(workers, token, until, reports) for _, token in jobs),
                    *(watch(http, names, until, reads) for _ in range(given.watchers)),
                )
                cpu = sum(server.cpu_times()[:2]) - cpu
            print(f"{given.jobs} jobs, {given.watchers} watchers, {given.seconds:g} s, {os.cpu_count()} cores, SQLite")
            show("GET /v1/jobs/{id}", reads, given.seconds)
            show("POST /worker/v1/report", reports, given.seconds)
            print(f"{'control plane':<22} {100 * cpu / given.seconds:7.1f} % of a core")
        finally:
            process.terminate()
            await process.wait()


if __name__ == "__main__":
    asyncio.run(main())
