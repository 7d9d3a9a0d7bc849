"""The load that one API replica is to bear: `python -m benchmarks.load`.

One API process with keys, on a PostgreSQL of its own, both started by itself in fresh folders, on this machine with the
client that makes the load. Prints what was asked and what was measured, with the sizes that it ran at; ends with 1
where something was missed. What each took of the CPU is told: where machines are slower, or busy, times are longer.

    python -m benchmarks.load --part reports --seconds 300
    python -m benchmarks.load --small
"""

import argparse
import asyncio
import os
import resource
import sys

from benchmarks.load import reports
from benchmarks.load.charts import chart
from benchmarks.load.fill import fill
from benchmarks.load.lists import Lists
from benchmarks.load.streams import all_on_one, each_its_own
from benchmarks.load.table import Table
from benchmarks.load.world import world

PARTS = ("lists", "reports", "streams", "charts", "charts-sqlite")
FULL = {"jobs": 100_000, "active": 2000, "interval": 10.0, "steps": 2, "seconds": 60.0, "streams": 1000,
        "points": 1_000_000, "rounds": 20}  # fmt: skip
SMALL = {"jobs": 1000, "active": 20, "interval": 1.0, "steps": 2, "seconds": 3.0, "streams": 10, "points": 10_000,
         "rounds": 3}  # fmt: skip


async def on_postgres(given: argparse.Namespace, table: Table) -> None:
    """Lists, reports and streams: all of them of the same jobs."""
    async with world("postgres") as here:
        issued = await fill(here, given.jobs, given.active)
        workers = reports.workers(here, issued, given.steps)
        if "lists" in given.part:
            table.head(f"Lists: {given.jobs} jobs in two projects, nothing else happens")
            lists = Lists(here, given.jobs, 1)
            await lists.rounds(given.rounds)
            lists.tell(table, each=True)
        if "reports" in given.part or "streams" in given.part:
            await reports.begin(here, workers)
        if "reports" in given.part:
            table.head(
                f"Reports: {given.active} jobs, every {given.interval:g} s, each of {given.steps} steps with "
                f"{len(reports.CURVES)} curves, for {given.seconds:g} s; two people look at lists 8 times a second"
            )
            async with reports.reporting(workers, given.interval):
                await asyncio.sleep(given.interval)
                measured = reports.Reports(here, workers, given.interval)
                lists = Lists(here, given.jobs, 2)
                await lists.during(given.seconds)
                measured.tell(table)
            lists.tell(table, each=False)
            await reports.all_stored(here, workers, table)
        if "streams" in given.part:
            await each_its_own(here, workers[: given.streams], table)
            await all_on_one(here, workers[0], given.streams, given.rounds // 2 or 1, table)
            await reports.all_stored(here, workers, table)
        if "charts" in given.part:
            table.head(f"Charts on PostgreSQL: {given.points} points of one curve, {given.rounds} looks each")
            await chart(here, given.points, given.rounds, table)


async def main() -> int:
    """Runs the parts that are asked for. 1: something was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="may be given again; all of them when left out")
    parser.add_argument("--small", action="store_true", help="at a hundredth of the sizes, in some seconds")
    parser.add_argument("--untimed", action="store_true", help="end with 1 for what is wrong, and not for what is slow")
    for name, value in FULL.items():
        parser.add_argument(f"--{name}", type=type(value), help=f"{value:g}; with --small {SMALL[name]:g}")
    given = parser.parse_args()
    given.part = given.part or list(PARTS)
    for name, value in (SMALL if given.small else FULL).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    table = Table(untimed=given.untimed)
    print(f"{os.cpu_count()} cores; load before {os.getloadavg()[0]:.1f}")
    if set(given.part) - {"charts-sqlite"}:
        await on_postgres(given, table)
    if "charts-sqlite" in given.part:
        async with world("sqlite") as here:
            table.head(f"Charts on SQLite: {given.points} points of one curve, {given.rounds} looks each")
            await chart(here, given.points, given.rounds, table)
    print(f"\n{'all of it holds' if not table.missed else 'MISSED: ' + '; '.join(table.missed)}")
    return 1 if table.missed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
