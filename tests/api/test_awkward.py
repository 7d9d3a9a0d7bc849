"""What is in no program's mind: numbers that no column holds, times at the world's end, keys that need escaping."""

from typing import Any

import httpx
import pytest
from sqlalchemy.exc import StatementError

from api.store import reports
from tests.api.conftest import REHEARSAL, Plane, happenings, paths

EARLY, LATE = "0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59-23:00"


def checkpoint(job: str, **fields: Any) -> dict[str, Any]:
    path = f"jobs/{job}/a1/checkpoints/step-1"
    return {"step": 1, "path": path, "bytes": 1, "sha256": "a" * 64, "at": "2026-01-01T00:00:00Z", **fields}


async def test_a_report_that_no_database_holds_is_refused_with_the_fields_name(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    for number in (10**24, 2**63):
        assert paths(await worker.report(checkpoints=[checkpoint(job, bytes=number)])) == ["checkpoints.0.bytes"]
    for at in (EARLY, LATE):
        assert paths(await worker.report(checkpoints=[checkpoint(job, at=at)])) == ["checkpoints.0.at"]
        assert paths(await worker.report(events=[{**happenings("Odd")[0], "at": at}])) == ["events.0.at"]
    output = {"kind": "model", "path": f"jobs/{job}/a1/model", "bytes": 2**63, "sha256": "a" * 64}
    assert paths(await worker.finish(outputs=[output])) == ["outputs.0.bytes"]
    assert (await worker.report(checkpoints=[checkpoint(job, bytes=2**63 - 1, at="9999-12-31T23:59:59Z")])).is_success


@pytest.mark.parametrize("call", ["report", "finish"])
async def test_what_a_database_refuses_for_ever_is_not_asked_for_again(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    worker = await plane.start((await plane.submit())["id"])

    def refuse(*_: Any, **__: Any) -> None:
        raise StatementError("too large", "INSERT", {}, OverflowError("int too large"))

    monkeypatch.setattr(reports, {"report": "take_in", "finish": "finish"}[call], refuse)
    answer = await {"report": worker.report, "finish": worker.finish}[call]()
    assert answer.status_code == 422
    assert "cannot be stored" in answer.json()["detail"]


@pytest.mark.parametrize("key", ["é", 'a"b', "a\\b", "a\tb", "x.y", "$", "[0]", "a'b", "日本"])
async def test_every_key_of_metadata_finds_its_jobs(plane: Plane, key: str) -> None:
    await plane.submit({**REHEARSAL, "name": "one", "metadata": {key: "1", "other": "2"}})
    await plane.submit({**REHEARSAL, "name": "two", "metadata": {key: "2", "other": "1"}})
    for value, found in (("1", ["one"]), ("2", ["two"]), ("3", [])):
        page = (await plane.http.get("/v1/jobs", params={f"metadata.{key}": value})).json()
        assert [job["name"] for job in page["data"]] == found


async def test_a_place_past_all_that_can_be_is_an_empty_page_and_an_end(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    for after in (2**31 - 1, 3_000_000_000, 2**53):
        for kind in ("events", "metrics", "samples"):
            answer = await plane.http.get(f"/v1/jobs/{job}/{kind}", params={"after": after})
            assert (answer.status_code, answer.json()["data"]) == (200, []), kind
    await plane.set(job, phase="cancelled")
    for kind in ("events", "metrics", "samples"):
        headers = {"Last-Event-ID": "9999999999999999"}
        assert (await plane.http.get(f"/v1/jobs/{job}/{kind}/stream", headers=headers)).status_code == 204


async def test_a_stream_that_begins_past_all_events_stays_open_and_ends_with_its_job(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    headers = {"Last-Event-ID": "9999999999999999"}
    async with plane.http.stream("GET", f"/v1/jobs/{job}/events/stream", headers=headers) as answer:
        assert answer.status_code == 200
        await plane.set(job, phase="cancelled")
        assert b"event: end" in await answer.aread()


@pytest.mark.parametrize("place", ["9" * 300 + "/0:1", f"{2**31}/0:1", "1/" + "9" * 30 + ":1", "1/0:" + "9" * 30])
async def test_a_log_stream_refuses_a_place_that_cannot_be(plane: Plane, place: str) -> None:
    job = (await plane.submit())["id"]
    answer: httpx.Response = await plane.http.get(f"/v1/jobs/{job}/logs/stream", headers={"Last-Event-ID": place})
    assert paths(answer) == ["Last-Event-ID"]


async def test_the_detail_of_a_single_problem_names_its_field(plane: Plane) -> None:
    answer = await plane.http.post("/v1/jobs", json={"stage": {**REHEARSAL["stage"], "steps": 0}})
    [problem] = answer.json()["errors"]
    assert problem["path"] == "stage.steps"
    assert answer.json()["detail"] == f"{problem['path']}: {problem['message']}"
