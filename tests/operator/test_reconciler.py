"""The operator on both databases, with real processes: each job goes where its owner wants it."""

import asyncio
import contextlib
import json
import os
import signal
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from api.domain.job import Desired, Phase, Reason
from api.domain.observation import Observation
from api.operator.local import LocalCluster
from api.store.database import Database, utcnow
from api.store.reports import AttemptOver
from api.store.tables import CheckpointRow, MetricRow
from tests.operator.builders import NOW, wishes
from tests.operator.conftest import STAND_IN, Plane, holders, until
from tests.operator.written import end, saved
from worker.contract.manifest import MANIFEST
from worker.contract.order import Order


async def test_a_posted_job_runs_and_succeeds(plane: Plane) -> None:
    job = await plane.post(**wishes(seconds=600))
    await plane.runs(job)
    end(plane, job, [])
    row = await plane.reaches(job, Phase.SUCCEEDED)
    assert (row.reason, row.fault, row.attempt) == (Reason.FINISHED, None, 1)
    assert row.started_at <= row.finished_at
    [attempt] = await plane.attempts(job)
    assert (attempt.exit_code, attempt.uid is not None, attempt.ended_at is not None) == (0, True, True)
    types = [event.type for event in await plane.events(job)]
    assert types == ["Starting", "Running", "Finishing", "Succeeded"]
    assert (plane.store / "logs" / job / "a1" / "rank-0.log").read_text() == f"hello from {job}\n"


async def test_what_is_left_of_an_attempt_is_removed(plane: Plane) -> None:
    job = await plane.post(**wishes(seconds=0))
    await plane.reaches(job, Phase.SUCCEEDED)

    async def clean() -> bool:
        return (await plane.attempts(job))[0].cleaned

    await until(clean)
    assert not (plane.data / "attempts" / f"{job}-a1").exists()


async def test_one_place_is_one_job_at_a_time(plane: Plane) -> None:
    jobs = [await plane.post(**wishes(seconds=0.2), queue={"priority": n}) for n in range(3)]
    for job in jobs:
        await plane.reaches(job, Phase.SUCCEEDED)
    rows = [await plane.job(job) for job in jobs]
    spans = sorted((row.started_at, row.finished_at) for row in rows)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


async def test_a_killed_attempt_is_followed_by_the_next_until_they_run_out(plane: Plane) -> None:
    job = await plane.post(**wishes(seconds=0.05, exit=137), retry={"max_attempts": 2})
    row = await plane.reaches(job, Phase.FAILED)
    assert (row.reason, row.fault, row.attempt, row.fruitless) == (Reason.KILLED, "infra", 2, 2)
    assert [a.reason for a in await plane.attempts(job)] == ["Killed", "Killed"]


async def test_a_fault_of_the_user_fails_at_once(plane: Plane) -> None:
    job = await plane.post(**wishes(seconds=0.05, exit=3))
    row = await plane.reaches(job, Phase.FAILED)
    assert (row.reason, row.fault, row.attempt) == (Reason.INVALID_DATA, "user", 1)


async def test_pause_resume_and_cancel(plane: Plane) -> None:
    job = await plane.post(**wishes(seconds=600))
    await plane.runs(job)
    await plane.wish(job, desired="pause")
    row = await plane.reaches(job, Phase.PAUSED)
    assert row.reason == Reason.PAUSED_BY_USER
    assert holders(plane.data) == []
    await plane.wish(job, desired="run")
    await plane.runs(job, attempt=2)
    await plane.wish(job, desired="cancel")
    row = await plane.reaches(job, Phase.CANCELLED)
    assert row.fruitless == 0


async def test_a_worker_that_does_not_stop_is_killed_after_its_grace(plane: Plane) -> None:
    job = await plane.post(**wishes(seconds=600, deaf=1, ranks=2), checkpoint={"grace": "300ms"})
    await plane.runs(job)
    await plane.wish(job, desired="pause")
    await plane.reaches(job, Phase.PAUSED)
    assert holders(plane.data) == []


async def test_ranks_whose_launcher_was_killed_are_ended_and_the_next_attempt_comes(plane: Plane) -> None:
    job = await plane.post(**wishes(seconds=600, ranks=2))
    await plane.runs(job)
    os.kill(int((plane.data / "attempts" / f"{job}-a1" / "lock").read_text()), signal.SIGKILL)
    await plane.reaches(job, Phase.STARTING, attempt=2)
    [first, _] = await plane.attempts(job)
    assert first.reason == Reason.KILLED
    assert plane.starts(job, 1) <= 1


async def test_a_job_that_reports_but_makes_no_step_is_stalled(plane: Plane) -> None:
    job = await plane.post(**wishes(seconds=600), limits={"stall": "10ms"}, retry={"max_attempts": 1})
    await plane.runs(job)
    seqs = count(2)

    async def ended() -> Any:
        with contextlib.suppress(AttemptOver):
            await plane.report(job, seq=next(seqs))
        row = await plane.job(job)
        return row if row.phase == Phase.FAILED else None

    row = await until(ended)
    assert (row.reason, row.fault) == (Reason.STALLED, "infra")


async def test_a_job_past_its_wall_clock_fails(plane: Plane) -> None:
    job = await plane.post(**wishes(seconds=600), limits={"wall_clock": "300ms"})
    await plane.runs(job)
    row = await plane.reaches(job, Phase.FAILED)
    assert (row.reason, row.fault) == (Reason.DEADLINE_EXCEEDED, "user")
    assert row.ran_for >= 0.3


async def test_retry_gives_a_failed_job_all_its_attempts_again(plane: Plane) -> None:
    job = await plane.post(**wishes(seconds=0.05, exit=4))
    await plane.reaches(job, Phase.FAILED)
    await plane.wish(job, retry_requested=True)
    row = await plane.reaches(job, Phase.FAILED, attempt=2)
    assert not row.retry_requested


async def test_a_launcher_that_dies_before_it_began_is_given_up_with_its_words(plane: Plane) -> None:
    job = await plane.post(**wishes(dies=1), retry={"max_attempts": 1})
    row = await plane.reaches(job, Phase.FAILED)
    assert row.reason == Reason.WORKER_ERROR
    assert "it dies early" in row.message


async def test_left_over_reports_are_taken_in_and_damaged_ones_are_said_to_be_lost(plane: Plane) -> None:
    job = await plane.post(**wishes(seconds=600))
    await plane.runs(job)
    spool = plane.store / "jobs" / job / "a1" / "spool"
    spool.mkdir(parents=True)
    for seq in (2, 3):
        point = {"name": "train/loss", "step": seq, "value": 1.0, "at": NOW}
        (spool / f"{seq:012d}.json").write_text(json.dumps({"seq": seq, "activity": "training", "metrics": [point]}))
    (spool / f"{4:012d}.json").write_text('{"seq": 4, "activ')
    await plane.wish(job, desired="cancel")
    await plane.reaches(job, Phase.CANCELLED)
    async with plane.database.reading() as session:
        points = (await session.scalars(select(MetricRow.step).where(MetricRow.job_id == job))).all()
    assert sorted(points) == [2, 3]
    [lost] = [event for event in await plane.events(job) if event.type == "ReportsLost"]
    assert lost.message.startswith("1 of its reports could not be read")


async def test_words_that_no_database_takes_hold_no_job_up(plane: Plane) -> None:
    job = await plane.post(**wishes(seconds=600), retry={"max_attempts": 1})
    await plane.runs(job)
    spool = plane.store / "jobs" / job / "a1" / "spool"
    spool.mkdir(parents=True)
    # Before the first year there is no time that a database keeps.
    for seq, message, at in ((2, "a \0 NUL", NOW), (3, "too early", "0001-01-01T00:00:00+23:59"), (4, "fine", NOW)):
        event = {"type": "Said", "message": message, "at": at}
        (spool / f"{seq:012d}.json").write_text(json.dumps({"seq": seq, "activity": "training", "events": [event]}))
    words = {"outcome": "failed", "reason": "Said", "exit_code": 3, "message": "torn \0 words"}
    end(plane, job, [], words)
    row = await plane.reaches(job, Phase.FAILED)
    assert (row.reason, row.message) == (Reason.INVALID_DATA, "torn \N{REPLACEMENT CHARACTER} words")
    events = {event.type: event.message for event in await plane.events(job)}
    assert events["Said"] == "fine"
    assert "\0" not in "".join(events.values())
    assert "1 of its reports could not be read from the spool, and are lost" in events["ReportsLost"]


async def test_a_checkpoint_that_was_sealed_but_not_told_of_counts(plane: Plane) -> None:
    job = await plane.post(**wishes(seconds=600), checkpoint={"keep": 2})
    await plane.runs(job)
    for step in (1, 2, 3):
        saved(plane, job, "checkpoints", f"step-{step:09d}")
    (plane.store / saved(plane, job, "checkpoints", "step-000000009")["path"] / "weights").write_text("torn")
    os.kill(int((plane.data / "attempts" / f"{job}-a1" / "lock").read_text()), signal.SIGKILL)
    row = await plane.reaches(job, Phase.STARTING, attempt=2)
    await plane.runs(job, attempt=2)
    assert row.fruitless == 0
    async with plane.database.reading() as session:
        query = select(CheckpointRow.step, CheckpointRow.pruned_at).where(CheckpointRow.job_id == job)
        recorded = {step: gone is None for step, gone in await session.execute(query)}
    assert (set(recorded), recorded[3]) == ({1, 2, 3}, True)


async def test_half_a_checkpoint_of_a_killed_attempt_is_removed(plane: Plane) -> None:
    job = await plane.post(**wishes(seconds=600))
    await plane.runs(job)
    folder = plane.store / saved(plane, job, "checkpoints", "step-000000001")["path"]
    half = folder.with_name(".tmp-step-000000002")
    half.mkdir()
    (half / "weights").write_text("ha")
    os.kill(int((plane.data / "attempts" / f"{job}-a1" / "lock").read_text()), signal.SIGKILL)
    await plane.reaches(job, Phase.STARTING, attempt=2)
    await plane.runs(job, attempt=2)
    assert (half.exists(), folder.exists()) == (False, True)


async def test_only_the_newest_checkpoints_are_kept(plane: Plane) -> None:
    job = await plane.post(**wishes(seconds=600), checkpoint={"keep": 2})
    await plane.runs(job)
    steps = [{"step": n, "at": NOW, **saved(plane, job, "checkpoints", f"step-{n:09d}")} for n in (1, 2, 3, 4)]
    await plane.report(job, seq=2, checkpoints=steps)

    async def kept() -> bool:
        async with plane.database.reading() as session:
            query = select(CheckpointRow.step).where(CheckpointRow.job_id == job, CheckpointRow.pruned_at.is_(None))
            return sorted((await session.scalars(query)).all()) == [3, 4]

    await until(kept)
    folder = plane.store / "jobs" / job / "a1" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000000003", "step-000000004"]


async def test_a_deleted_job_leaves_nothing_but_its_models(plane: Plane) -> None:
    job = await plane.post(name="talks", **wishes(seconds=600))
    await plane.runs(job)
    await plane.report(job, seq=2, checkpoints=[{"step": 3, "at": NOW, **saved(plane, job, "checkpoints", "step-3")}])
    end(plane, job, [{"kind": "model", **saved(plane, job, "outputs", "model")}])
    await plane.reaches(job, Phase.SUCCEEDED)
    await plane.wish(job, deleted_at=utcnow())

    async def gone() -> bool:
        return await plane.job(job) is None

    await until(gone)
    left = sorted(str(path.relative_to(plane.store)) for path in plane.store.rglob("*") if path.is_file())
    assert left == [f"jobs/{job}/a1/outputs/model/{name}" for name in (MANIFEST, "weights")]
    assert not list((plane.data / "attempts").iterdir())


async def test_a_stray_attempt_is_stopped_and_removed(plane: Plane) -> None:
    from tests.operator.builders import spec
    from tests.operator.conftest import local

    cluster = local(plane.data)
    order = cluster.order("job-stray-a3", "job-stray", 3, spec(**wishes(seconds=600, ranks=1)), {})
    await cluster.ensure("job-stray-a3", order, "token")

    async def gone() -> bool:
        return "job-stray-a3" not in await cluster.names()

    await until(gone)
    assert holders(plane.data) == []


async def test_one_jobs_trouble_does_not_stop_the_others(database: Any, data: Path) -> None:
    async with Plane(database, data, places=2) as plane:
        bad = await plane.post(**wishes(seconds=600))
        (data / "attempts").mkdir(exist_ok=True)
        await plane.runs(bad)
        # Nobody can look at this one any more.
        lock = data / "attempts" / f"{bad}-a1" / "lock"
        lock.rename(lock.with_name("hidden"))
        lock.mkdir()
        good = await plane.post(**wishes(seconds=0))
        await plane.reaches(good, Phase.SUCCEEDED)
        assert (await plane.job(bad)).phase == Phase.RUNNING
        lock.rmdir()
        lock.with_name("hidden").rename(lock)
        await plane.wish(bad, desired="cancel")
        await plane.reaches(bad, Phase.CANCELLED)


async def test_a_pause_before_the_first_report_ends_the_attempt_which_may_not_begin_any_more(plane: Plane) -> None:
    from api.store.reports import AttemptOver

    job = await plane.post(**wishes(seconds=600))
    await plane.reaches(job, Phase.STARTING)
    await plane.wish(job, desired=Desired.PAUSE)
    with pytest.raises(AttemptOver):
        await plane.report(job)
    await plane.reaches(job, Phase.PAUSED)


async def test_the_loop_says_that_it_lives(plane: Plane) -> None:
    before = plane.operator.alive

    async def turned() -> bool:
        return plane.operator.alive > before

    await until(turned)
    await asyncio.sleep(0)


async def test_a_next_attempt_runs_the_image_of_the_first(database: Database, data: Path) -> None:
    asked: list[str | None] = []

    class Tagged(LocalCluster):
        """A cluster that tells images apart."""

        async def ensure(self, name: str, order: Order, token: str, image: str | None = None, project: str = "") -> str:
            asked.append(image)
            return await super().ensure(name, order, token, image, project)

        async def observe(self, name: str, uid: str | None = None) -> Observation:
            seen = await super().observe(name, uid)
            return replace(seen, image="registry.example/worker@sha256:0") if seen.alive else seen

    cluster = Tagged(data, (data / "store").as_uri(), data / "worker-url", command=STAND_IN)
    async with Plane(database, data, cluster=cluster) as plane:
        job = await plane.post(**wishes(seconds=600))
        await plane.runs(job)
        os.kill(holders(data)[0], signal.SIGKILL)

        async def twice() -> bool:
            return len(asked) > 1

        await until(twice)
    assert asked[:2] == [None, "registry.example/worker@sha256:0"]
