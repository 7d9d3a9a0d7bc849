"""A long curve, reduced to what a screen shows."""

import json
import math
import random
import time
from typing import Any

from api.store.database import Database, utcnow
from api.store.tables import AttemptRow, JobRow
from benchmarks.api_load import Caller
from benchmarks.load.fill import SPEC, tokens
from benchmarks.load.table import Table, quantile, quantiles
from benchmarks.load.world import Spent, World
from worker.contract.check import parse_spec

TARGET = 0.3
SHOWN = 1000
# Points that a worker's report may have.
_MOST = 2000
_AT = "2026-01-01T00:00:00+00:00"


async def chart(world: World, points: int, times: int, table: Table) -> None:
    """Makes a curve by reports, and looks at it from far and near."""
    job, token = await _job(world)
    began, spent = time.perf_counter(), Spent(world)
    top = await _draw(Caller(world.worker_url), token, points)
    table.note("made by reports of 2,000 points", f"within {time.perf_counter() - began:.1f} s; {spent}")
    caller = Caller(world.url)
    for share in (1, 2, 10, 100, 1000):
        await _zoom(world, caller, job, points, share, times, top if share == 1 else None, table)


async def _zoom(
    world: World, caller: Caller, job: str, points: int, share: int, times: int, top: float | None, table: Table
) -> None:
    took: list[float] = []
    width = max(1, points // share)
    for _ in range(times):
        first = random.randrange(points - width + 1)
        query = f"name=train/loss&downsample={SHOWN}"
        if share > 1:
            query += f"&from_step={first}&to_step={first + width - 1}"
        began = time.perf_counter()
        answer = await caller.call("GET", f"/v1/jobs/{job}/metrics?{query}", b"", world.key)
        took.append(time.perf_counter() - began)
    shown = [point["value"] for point in answer["data"]]
    what = "the whole" if share == 1 else f"1/{share}"
    table.timed(
        f"{what}: {width} points as {len(shown)}", "p95 < 300 ms", quantiles(took), quantile(took, 0.95) < TARGET
    )
    table.check("  no more than a screen shows", f"<= {SHOWN}", len(shown), 0 < len(shown) <= SHOWN)
    if top is not None:
        table.check("  its highest point is there", f"{top:.6f}", f"{max(shown):.6f}", max(shown) == top)


async def _job(world: World) -> tuple[str, str]:
    """One that runs, with its token."""
    database = Database(world.database_url)
    spec = parse_spec(SPEC)
    from api.store import jobs

    async with database.transaction() as session:
        row, _ = await jobs.create(session, spec, {}, project="default")
        row.phase, row.attempt = "starting", 1
        session.add(AttemptRow(job_id=row.id, number=1, object_name=f"{row.id}-a1", created_at=utcnow()))
    await database.dispose()
    assert isinstance(row, JobRow)
    [issued] = await tokens(world, [row.id])
    return issued


async def _draw(caller: Caller, token: str, points: int) -> float:
    """A loss that falls, with noise and one spike; gives the spike."""
    headers = f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    spike = random.randrange(points)
    highest = -math.inf
    for seq, start in enumerate(range(0, points, _MOST), 1):
        values = [
            100.0 + random.random() if step == spike else 3.0 / (1 + step / points) + random.random()
            for step in range(start, min(points, start + _MOST))
        ]
        highest = max(highest, *values)
        body: dict[str, Any] = {
            "seq": seq,
            "activity": "training",
            "progress": {"step": start + len(values) - 1, "mark": seq},
            "metrics": [
                {"name": "train/loss", "step": start + offset, "value": value, "at": _AT}
                for offset, value in enumerate(values)
            ],
        }
        await caller.call("POST", "/worker/v1/report", json.dumps(body).encode(), headers, note=False)
    return highest
