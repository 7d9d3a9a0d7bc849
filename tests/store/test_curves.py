"""Long curves are reduced without a lie: the extremes of each part are there, whatever was summed up and when."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, update

from api.store import curves, jobs, reports
from api.store.curves import SPAN
from api.store.database import Database, utcnow
from api.store.metrics import Choice
from api.store.tables import AttemptRow, JobRow, MetricRow, SpanRow
from tests.api.conftest import REHEARSAL
from worker.contract.check import parse_spec
from worker.contract.protocol import Report

AT = "2026-01-01T00:00:00Z"


class Drawn:
    """A job whose attempts report curves."""

    def __init__(self, database: Database, job: str) -> None:
        self.database, self.job = database, job
        self.attempt = self.seq = 0

    async def begin(self, resumed_from: int | None = None) -> None:
        """The next attempt."""
        self.attempt, self.seq = self.attempt + 1, 0
        async with self.database.transaction() as session:
            name = f"{self.job}-a{self.attempt}"
            session.add(AttemptRow(job_id=self.job, number=self.attempt, object_name=name, created_at=utcnow()))
            await session.execute(update(JobRow).values(phase="starting", attempt=self.attempt))
        await self.tell([], resumed_from=resumed_from)

    async def tell(self, points: Sequence[tuple[str, int, float]], attempt: int | None = None, **more: Any) -> None:
        """One report."""
        self.seq += 1
        metrics = [{"name": name, "step": step, "value": value, "at": AT} for name, step, value in points]
        report = Report.model_validate({"seq": self.seq, "activity": "training", "metrics": metrics, **more})
        number, late = attempt or self.attempt, attempt is not None
        if late:
            async with self.database.transaction() as session:
                await session.execute(
                    update(AttemptRow).where(AttemptRow.number == number).values(last_seq=0, summed_seq=0)
                )
        await self.database.put(lambda c: reports.take_in(c, self.job, number, report, late))

    async def reduced(self, points: int, **choice: Any) -> dict[str, curves.Curve]:
        """What is shown."""
        found = await self.database.put(lambda c: curves.reduced(c, self.job, Choice(**choice), points))
        return {curve.name: curve for curve in found}

    async def every(self, name: str, choice: dict[str, Any]) -> list[Any]:
        """All points, without any summary."""
        query = select(MetricRow.__table__).where(MetricRow.name == name)
        if not choice.get("superseded"):
            query = query.where(MetricRow.superseded.is_(False))
        if (attempt := choice.get("attempt")) is not None:
            query = query.where(MetricRow.attempt == attempt)
        first, last = choice.get("from_step", 0), choice.get("to_step", 2**53)
        query = query.where(MetricRow.step >= first, MetricRow.step <= last).order_by(MetricRow.step, MetricRow.id)
        return await self.database.look(lambda c: list(c.execute(query).mappings()))

    async def holds(self, points: int, **choice: Any) -> None:
        """What is shown is what is there: no more than asked for, and no extreme is missing."""
        shown = await self.reduced(points, **choice)
        names = await self.database.look(lambda c: set(c.scalars(select(MetricRow.name).distinct())))
        for name in names:
            there = await self.every(name, choice)
            if not there:
                assert name not in shown
                continue
            curve = shown[name]
            assert curve.points == len(there)
            if len(there) <= points:
                assert [row["id"] for row in curve.shown] == [row["id"] for row in there]
                continue
            assert len(curve.shown) <= points
            assert {row["id"] for row in curve.shown} <= {row["id"] for row in there}
            assert [row["step"] for row in curve.shown] == sorted(row["step"] for row in curve.shown)
            assert (curve.shown[0]["step"], curve.shown[-1]["step"]) == (there[0]["step"], there[-1]["step"])
            values = [row["value"] for row in curve.shown]
            assert (min(values), max(values)) == (min(r["value"] for r in there), max(r["value"] for r in there))
            # In every stretch of steps as long as two parts, too.
            first, last = there[0]["step"], there[-1]["step"]
            width = -(-(last - first + 1) // ((points - 2) // 2))
            stretch = 2 * (-(-width // SPAN) * SPAN if width >= SPAN else width)
            for begin in range(first, last - stretch, stretch):
                within = [row for row in there if begin <= row["step"] < begin + stretch]
                assert not within or any(begin <= row["step"] < begin + stretch for row in curve.shown)


@pytest.fixture
async def drawn(database: Database) -> Drawn:
    async with database.transaction() as session:
        row, _ = await jobs.create(session, parse_spec(REHEARSAL), {}, project="default")
    made = Drawn(database, row.id)
    await made.begin()
    return made


def noise(start: int, end: int, *names: str) -> list[tuple[str, int, float]]:
    return [(name, step, random.random()) for step in range(start, end) for name in names or ("train/loss",)]


async def spans(drawn: Drawn) -> int:
    return await drawn.database.look(lambda c: c.scalar(select(func.count()).select_from(SpanRow)) or 0)


async def test_a_long_curve_is_shown_by_the_extremes_of_its_parts(drawn: Drawn) -> None:
    for start in range(0, 30 * SPAN, 500):
        await drawn.tell(noise(start, min(start + 500, 30 * SPAN)))
    assert await spans(drawn) == 29
    for points in (4, 5, 8, 20, 41, 60, 100, 1000, 5000):
        await drawn.holds(points)
        await drawn.holds(points, from_step=3, to_step=17 * SPAN + 5)
        await drawn.holds(points, from_step=5 * SPAN, to_step=6 * SPAN - 1)
    # Less than an extreme of each kind: the ends.
    few = await drawn.reduced(2)
    assert [row["step"] for row in few["train/loss"].shown] == [0, 30 * SPAN - 1]


async def test_a_long_curve_is_read_from_its_summaries(drawn: Drawn) -> None:
    for start in range(0, 20 * SPAN, 2 * SPAN):
        await drawn.tell(noise(start, start + 2 * SPAN))
    async with drawn.database.transaction() as session:
        # Nothing but its ends and the open span is asked for: nobody would see what lies between.
        await session.execute(update(SpanRow).where(SpanRow.span == 7).values(high=9.0))
        wanted = await session.scalar(select(SpanRow.high_id).where(SpanRow.span == 7))
    shown = await drawn.reduced(4)
    assert wanted in [row["id"] for row in shown["train/loss"].shown]


async def test_points_that_come_late_and_curves_of_their_own_pace_are_in_the_summaries(drawn: Drawn) -> None:
    for start in range(0, 20 * SPAN, 200):
        await drawn.tell(
            noise(start, start + 200) + [("eval/loss", start // 100 * 100, random.random())] * (start % 1000 == 0)
        )
    # Late, one span; and so late that much is to be summed up anew.
    await drawn.tell([("train/lr", 3 * SPAN + 1, -5.0), ("train/lr", 3 * SPAN + 2, 5.0)])
    await drawn.holds(8)
    await drawn.tell([("train/lr", step, random.random()) for step in range(0, 18 * SPAN, 7)])
    await drawn.holds(8)
    await drawn.tell(noise(20 * SPAN, 22 * SPAN, "train/loss", "train/lr"))
    for points in (6, 30, 300):
        await drawn.holds(points)


async def test_what_a_later_attempt_made_again_counts_only_where_it_is_asked_for(drawn: Drawn) -> None:
    await drawn.tell(noise(0, 10 * SPAN))
    await drawn.tell(noise(10 * SPAN, 15 * SPAN))
    await drawn.begin(resumed_from=9 * SPAN + 10)
    await drawn.tell(noise(9 * SPAN + 11, 13 * SPAN))
    # What the first one had left to say.
    await drawn.tell([("train/loss", 15 * SPAN, 7.0), ("train/loss", 2 * SPAN, 8.0)], attempt=1)
    await drawn.begin(resumed_from=12 * SPAN)
    await drawn.tell(noise(12 * SPAN + 1, 25 * SPAN))
    for points in (6, 40, 500):
        await drawn.holds(points)
        await drawn.holds(points, superseded=True)
        await drawn.holds(points, attempt=1)
        await drawn.holds(points, attempt=2, superseded=True)
        await drawn.holds(points, from_step=8 * SPAN, to_step=14 * SPAN)


async def test_curves_of_before_the_summaries_are_shown_all_the_same(drawn: Drawn) -> None:
    async with drawn.database.transaction() as session:
        await session.execute(update(AttemptRow).values(summed=None))
    for start in range(0, 10 * SPAN, 500):
        await drawn.tell(noise(start, start + 500))
    assert await spans(drawn) == 0
    for points in (6, 100, 5000):
        await drawn.holds(points)


async def test_summaries_that_lack_what_the_release_before_took_in_do_not_count(drawn: Drawn) -> None:
    await drawn.tell(noise(0, 10 * SPAN))
    before = await spans(drawn)
    async with drawn.database.transaction() as session:
        # As it does: the points, and its number. It knows of no summaries.
        late = {"job_id": drawn.job, "attempt": 1, "name": "train/loss", "step": 2 * SPAN, "at": utcnow()}
        await session.execute(delete(MetricRow).where(MetricRow.step == 2 * SPAN))
        await session.execute(insert(MetricRow), [{**late, "value": 9.0}])
        drawn.seq += 1
        await session.execute(update(AttemptRow).values(last_seq=drawn.seq))
    assert await spans(drawn) == before
    await drawn.holds(8)
    # Nor later, when this release is told of what follows.
    await drawn.tell(noise(10 * SPAN, 12 * SPAN))
    await drawn.tell(noise(12 * SPAN, 13 * SPAN))
    await drawn.holds(8)


async def test_what_the_release_before_took_in_before_there_were_summaries_is_in_them(drawn: Drawn) -> None:
    async with drawn.database.transaction() as session:
        at = {"job_id": drawn.job, "attempt": 1, "name": "train/loss", "at": utcnow()}
        await session.execute(insert(MetricRow), [{**at, "step": step, "value": 9.0 - step} for step in range(SPAN)])
        drawn.seq += 1
        await session.execute(update(AttemptRow).values(last_seq=drawn.seq))
    await drawn.tell(noise(SPAN, 12 * SPAN))
    assert await spans(drawn) == 11
    await drawn.holds(8)


async def test_a_curve_is_of_one_moment_also_while_its_summaries_are_made_anew(
    drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await drawn.tell(noise(0, 20 * SPAN))
    async with drawn.database.reading(one_state=True) as session:
        connection = await session.connection()
        pieces = await connection.run_sync(curves._pieces, drawn.job, Choice())
        # Late, in so many spans that all of them go, and not all come back at once.
        await drawn.tell([("train/lr", step, 1.0) for step in range(0, 10 * SPAN, SPAN)])
        assert await spans(drawn) < 19
        monkeypatch.setattr(curves, "_pieces", lambda *_: pieces)
        shown = await connection.run_sync(curves.reduced, drawn.job, Choice(), 8)
    assert [(curve.name, curve.points) for curve in shown] == [("train/loss", 20 * SPAN)]
