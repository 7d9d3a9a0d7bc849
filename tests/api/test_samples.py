"""The answers that a worker shows: kept, paged, followed, superseded, and no more of them than fit."""

from functools import partial
from typing import Any

import pytest
from sqlalchemy import delete, func, select
from sqlalchemy.engine import Connection

from api import streams
from api.store import reports, samples
from api.store.tables import JobRow, SampleRow
from tests.api.conftest import Plane, Worker, points
from tests.api.test_streams import following, take, whole
from worker.contract.protocol import Report

AT = "2026-01-01T00:00:00Z"


def answers(step: int, *indices: int, **more: Any) -> list[dict[str, Any]]:
    """What a worker shows of one iteration."""
    return [
        {
            "step": step,
            "index": index,
            "prompt": f"prompt {index}",
            "answer": f"answer {index}",
            "tokens": ["answer", f" {index}"],
            "kl": [0.25, -0.5],
            "terms": {"sentiment": 0.75, "length": 2.0},
            "reward": 0.55,
            "ended": True,
            "at": AT,
            **more,
        }
        for index in indices
    ]


async def working(plane: Plane) -> tuple[str, Worker]:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    assert (await worker.report()).is_success
    return job, worker


async def shown(plane: Plane, job: str, **params: Any) -> list[tuple[int, int, int]]:
    """The (attempt, step, index) of all samples that are shown, over all pages."""
    found: list[tuple[int, int, int]] = []
    while True:
        answer = await plane.http.get(f"/v1/jobs/{job}/samples", params=params)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += [(one["attempt"], one["step"], one["index"]) for one in page["data"]]
        if page["next"] is None:
            return found
        params["after"] = page["next"]


async def held(plane: Plane, job: str) -> list[tuple[int, int, int]]:
    return await shown(plane, job, superseded=True, limit=200)


async def test_a_sample_is_shown_as_the_worker_told_it(plane: Plane) -> None:
    job, worker = await working(plane)
    assert (await worker.report(samples=answers(1, 4, prompt="Wie geht's? 🙂"))).status_code == 200
    [sample] = (await plane.http.get(f"/v1/jobs/{job}/samples")).json()["data"]
    assert sample.pop("id") > 0
    assert sample == {
        "step": 1,
        "index": 4,
        "attempt": 1,
        "prompt": "Wie geht's? 🙂",
        "answer": "answer 4",
        "tokens": ["answer", " 4"],
        "kl": [0.25, -0.5],
        "terms": {"sentiment": 0.75, "length": 2.0},
        "reward": 0.55,
        "ended": True,
        "at": "2026-01-01T00:00:00.000000Z",
        "superseded": False,
    }


async def test_samples_come_page_by_page_and_by_step_and_newest_first(plane: Plane) -> None:
    job, worker = await working(plane)
    for step in (1, 2, 3):
        await worker.report(samples=answers(step, 0, 1, 2))
    everything = [(1, step, index) for step in (1, 2, 3) for index in (0, 1, 2)]
    assert await shown(plane, job, limit=2) == everything
    assert await shown(plane, job, limit=2, order="-id") == everything[::-1]
    assert await shown(plane, job, step=2, limit=2) == everything[3:6]
    assert await shown(plane, job, attempt=2) == []


async def test_the_same_report_and_the_same_answer_again_change_nothing(plane: Plane) -> None:
    job, worker = await working(plane)
    for _ in range(2):
        assert (await worker.report(seq=7, samples=answers(1, 0, 1))).is_success
    assert (await worker.report(seq=8, samples=answers(1, 1, 2))).is_success
    assert await shown(plane, job) == [(1, 1, 0), (1, 1, 1), (1, 1, 2)]


async def test_what_a_later_attempt_makes_again_is_superseded(plane: Plane) -> None:
    job, worker = await working(plane)
    await worker.report(samples=answers(1, 0) + answers(2, 0) + answers(3, 0))
    again = await plane.start(job, 2)
    await again.report(resumed_from=1, samples=answers(2, 0))
    assert await shown(plane, job) == [(1, 1, 0), (2, 2, 0)]
    assert await shown(plane, job, superseded=True) == [(1, 1, 0), (1, 2, 0), (1, 3, 0), (2, 2, 0)]
    # What the first attempt could not deliver in time comes late, and is superseded as it comes.
    late = Report.model_validate(
        {"seq": 99, "activity": "training", "samples": answers(1, 5) + answers(2, 5), "metrics": points(2)}
    )
    take_late = partial(reports.take_in, job_id=job, attempt=1, report=late, late=True)
    await plane.control.database.put(take_late)
    assert (1, 1, 5) in await shown(plane, job)
    assert (1, 2, 5) not in await shown(plane, job)
    # One that begins anew makes all of them again.
    anew = await plane.start(job, 3)
    await anew.report(resumed_from=0)
    assert await shown(plane, job) == []


async def test_a_deleted_job_leaves_no_samples(plane: Plane) -> None:
    job, worker = await working(plane)
    await worker.report(samples=answers(1, 0))
    async with plane.control.database.transaction() as session:
        await session.execute(delete(JobRow).where(JobRow.id == job))
    async with plane.control.database.reading() as session:
        assert await session.scalar(select(func.count()).select_from(SampleRow)) == 0
    assert (await plane.http.get(f"/v1/jobs/{job}/samples")).status_code == 404


async def test_what_is_beyond_the_limit_goes_the_superseded_first_and_then_evenly(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MOST", 12)
    job, worker = await working(plane)
    for step in (1, 2, 3):
        await worker.report(samples=answers(step, 0, 1, 2, 3))
    assert len(await held(plane, job)) == 12
    again = await plane.start(job, 2)
    await again.report(resumed_from=2)
    await again.report(samples=answers(3, 0))
    # A few more than must: it is not done at every report.
    assert [one for one in await held(plane, job) if one[:2] == (1, 3)] == [(1, 3, 0)]
    assert len(await shown(plane, job)) == 9
    for step in range(4, 13):
        await again.report(samples=answers(step, 0, 1, 2, 3))
        assert len(await held(plane, job)) <= 12
    assert await shown(plane, job) == [(1 if step < 3 else 2, step, 0) for step in range(1, 13)]
    # Where each step has one, the oldest go.
    await again.report(samples=answers(13, 0, 1, 2, 3))
    assert [step for _, step, _ in await held(plane, job)] == list(range(2, 14))


async def test_numbers_of_samples_that_went_are_never_given_again(plane: Plane) -> None:
    job, worker = await working(plane)
    await worker.report(samples=answers(1, 0, 1, 2))
    newest = await _newest(plane, job)

    def all_go(connection: Connection) -> int:
        return samples.make_room(connection, job, 0)

    for _ in range(3):
        await plane.control.database.put(all_go)
    assert await held(plane, job) == []
    await worker.report(samples=answers(2, 0))
    assert await _newest(plane, job) > newest


async def _newest(plane: Plane, job: str) -> int:
    page = (await plane.http.get(f"/v1/jobs/{job}/samples", params={"order": "-id", "limit": 1})).json()
    return int(page["data"][0]["id"])


async def test_a_stream_of_samples_goes_on_after_the_last_id_and_ends_with_the_job(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small enough that the stream falls back from the poll's buffer to the database and returns to it.
    monkeypatch.setattr(streams, "_PAGE", 30)
    monkeypatch.setattr(streams, "_BUFFER", 40)
    monkeypatch.setattr(streams, "_BATCH", 50)
    job, worker = await working(plane)
    url = f"/v1/jobs/{job}/samples/stream"
    await worker.report(samples=answers(1, *range(5)))
    async with following(plane, url) as sent:
        first = await take(sent, 5)
        await worker.report(samples=answers(2, *range(20)))
        first += await take(sent, 3)
    assert [event.data["index"] for event in first] == [0, 1, 2, 3, 4, 0, 1, 2]
    await worker.report(samples=answers(3, 0))
    await plane.set(job, phase="succeeded")
    rest = await whole(plane, url, first[-1].id)
    assert [event.data["index"] for event in rest[:-1]] == [*range(3, 20), 0]
    assert (rest[-1].event, rest[-1].data) == ("end", {"phase": "succeeded"})
    again = await plane.http.get(url, headers={"Last-Event-ID": rest[-1].id})
    assert (again.status_code, again.content) == (204, b"")
    of_a_step = await whole(plane, f"{url}?step=3")
    assert [event.data["step"] for event in of_a_step if event.event != "end"] == [3]


async def test_a_stream_does_not_end_before_all_is_read_that_one_poll_cannot(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two samples a poll.
    monkeypatch.setattr(streams, "_BATCH", 20)
    job, worker = await working(plane)
    async with following(plane, f"/v1/jobs/{job}/samples/stream") as sent:
        await worker.report(samples=answers(1, 0))
        await take(sent, 1)
        await worker.report(samples=answers(2, *range(9)))
        await plane.set(job, phase="succeeded")
        rest = await take(sent, 10)
    assert [event.data["index"] for event in rest[:9]] == list(range(9))
    assert rest[9].event == "end"


async def test_a_list_becomes_a_stream_after_a_row(plane: Plane) -> None:
    job, worker = await working(plane)
    await worker.report(samples=answers(1, 0, 1, 2))
    listed = (await plane.http.get(f"/v1/jobs/{job}/samples")).json()["data"]
    await plane.set(job, phase="succeeded")
    sent = await whole(plane, f"/v1/jobs/{job}/samples?follow=true&after={listed[0]['id']}")
    assert [event.data["index"] for event in sent if event.event != "end"] == [1, 2]


@pytest.mark.parametrize("url", ["samples?limit=201", "samples?order=up", "samples?step=-1", "samples?after=x"])
async def test_what_cannot_be_asked_for_is_refused(plane: Plane, url: str) -> None:
    job = (await plane.submit())["id"]
    assert (await plane.http.get(f"/v1/jobs/{job}/{url}")).status_code == 422
    bad = await plane.http.get(f"/v1/jobs/{job}/samples/stream", headers={"Last-Event-ID": "x"})
    assert bad.status_code == 422
    assert (await plane.http.get("/v1/jobs/job-none/samples")).status_code == 404
    assert (await plane.http.get("/v1/jobs/job-none/samples/stream")).status_code == 404


async def test_a_sample_with_a_number_that_is_none_is_refused(plane: Plane) -> None:
    _, worker = await working(plane)
    assert (await worker.report(samples=answers(1, 0, reward="nan"))).status_code == 422
