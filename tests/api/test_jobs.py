"""Creating, reading and changing jobs."""

import asyncio
import resource
from collections.abc import AsyncIterator

import pytest

from tests.api.conftest import REHEARSAL, Plane, happenings, paths

JSON = {"Content-Type": "application/json"}


async def test_a_job_is_shown_with_every_default_filled_in(plane: Plane) -> None:
    job = await plane.submit()
    assert job["phase"] == "queued" and job["desired"] == "run" and job["attempt"] == 0
    assert job["name"] == job["stage"] == "rehearse"
    assert job["spec"]["checkpoint"] == {"every_steps": 50, "keep": 2, "grace": 600.0}
    assert await plane.get(job["id"]) == job


async def test_a_created_job_says_where_it_is_and_has_an_event(plane: Plane) -> None:
    answer = await plane.http.post("/v1/jobs", json=REHEARSAL)
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    events = (await plane.http.get(f"{answer.headers['location']}/events")).json()["data"]
    assert [(event["number"], event["type"], event["source"]) for event in events] == [(1, "Created", "api")]


async def test_a_dry_run_checks_everything_and_stores_nothing(plane: Plane) -> None:
    answer = await plane.http.post("/v1/jobs?dry_run=true", json=REHEARSAL)
    assert answer.status_code == 200
    assert answer.json()["spec"]["stage"]["steps"] == 3
    assert (await plane.http.get("/v1/jobs")).json()["data"] == []
    assert (await plane.http.post("/v1/jobs?dry_run=true", json={"stage": {}})).status_code == 422


async def test_everything_wrong_with_a_spec_is_said_at_once(plane: Plane) -> None:
    spec = {"stage": {"type": "sft", "model": "x/y", "data": "files/f", "epochz": 1, "batch": 0}, "colour": 1}
    answer = await plane.http.post("/v1/jobs", json=spec)
    assert answer.status_code == 422
    assert {"stage.epochz", "stage.batch", "colour"} <= set(paths(answer))


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b'{"stage": {"type": "rehearse",\n  "steps": }}', 400, "line 2, column 12"),
        (b'{"stage": {"type": "rehearse", "steps": NaN}}', 400, "NaN"),
        (b"", 400, "not JSON"),
        (b"\xff\xfe", 400, "UTF-8"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[" * 200 + b"]" * 200, 422, "nested"),
        (b'{"name": "\\u0000"}', 422, "NUL"),
        (b'{"name": "\\ud800"}', 422, "surrogate"),
        (b'{"stage": {"type": "rehearse", "steps": 1e999}}', 422, "too large"),
        (b'{"stage": {"type": "rehearse", "steps": 1, "steps": 2}}', 422, "'steps' is given twice"),
        (b"[]", 422, "object"),
        (b"null", 422, "object"),
    ],
)
async def test_a_malformed_body_is_a_clear_problem(plane: Plane, body: bytes, status: int, says: str) -> None:
    answer = await plane.http.post("/v1/jobs", content=body, headers=JSON)
    assert answer.status_code == status, answer.text
    paths(answer)
    assert says in answer.text


async def test_a_body_that_is_no_json_by_its_type_is_refused(plane: Plane) -> None:
    answer = await plane.http.post("/v1/jobs", content=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    paths(answer)


async def test_a_body_of_100_mb_is_refused_and_never_held(plane: Plane) -> None:
    async def flood() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 2**20

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    declared = await plane.http.post("/v1/jobs", content=flood(), headers={**JSON, "Content-Length": str(100 * 2**20)})
    chunked = await plane.http.post("/v1/jobs", content=flood(), headers=JSON)
    for answer in (declared, chunked):
        assert answer.status_code == 413
        paths(answer)
        assert "1048576 bytes" in answer.text
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert kibibytes < 40 * 1024


async def test_the_same_key_and_body_make_one_job(plane: Plane) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = await plane.http.post("/v1/jobs", json=REHEARSAL, headers=headers)
    again = await plane.http.post("/v1/jobs", json=REHEARSAL, headers=headers)
    other = await plane.http.post("/v1/jobs", json={**REHEARSAL, "name": "other"}, headers=headers)
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 422)
    assert again.json() == first.json()
    assert paths(other) == ["Idempotency-Key"]
    assert len((await plane.http.get("/v1/jobs")).json()["data"]) == 1


async def test_ten_requests_at_once_with_one_key_make_one_job(plane: Plane) -> None:
    headers = {"Idempotency-Key": "k1"}
    answers = await asyncio.gather(*(plane.http.post("/v1/jobs", json=REHEARSAL, headers=headers) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] * 9 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_an_etag_changes_with_what_it_stands_for(plane: Plane) -> None:
    job = await plane.submit()
    url = f"/v1/jobs/{job['id']}"
    tag = (await plane.http.get(url)).headers["etag"]
    assert (await plane.http.get(url, headers={"If-None-Match": tag})).status_code == 304
    await plane.set(job["id"], phase="starting")
    moved = await plane.http.get(url, headers={"If-None-Match": tag})
    assert moved.status_code == 200 and moved.json()["phase"] == "starting"
    # The phase is no change of its owner's: whoever read the job before may still change it.
    assert (await plane.http.patch(url, json={"name": "new"}, headers={"If-Match": tag})).status_code == 200
    stale = await plane.http.patch(url, json={"name": "newer"}, headers={"If-Match": tag})
    assert stale.status_code == 412
    paths(stale)
    assert (await plane.get(job["id"]))["name"] == "new"


async def test_a_patch_changes_what_it_names_and_nothing_else(plane: Plane) -> None:
    job = await plane.submit({**REHEARSAL, "metadata": {"team": "a", "run": "1"}})
    url = f"/v1/jobs/{job['id']}"
    answer = await plane.http.patch(url, json={"metadata": {"run": None, "owner": "b"}, "priority": 5})
    assert answer.status_code == 200
    now = await plane.get(job["id"])
    assert now["metadata"] == {"team": "a", "owner": "b"} and now["priority"] == 5 and now["name"] == job["name"]
    assert now["generation"] == 2
    assert (await plane.http.patch(url, json={"priority": 5})).json()["generation"] == 2


@pytest.mark.parametrize(
    "patch", [{"spec": {}}, {"name": "No Capitals"}, {"priority": 1.5}, {"metadata": {"k": 1}}, {"metadata": []}, []]
)
async def test_a_patch_of_anything_else_is_refused(plane: Plane, patch: object) -> None:
    job = await plane.submit()
    answer = await plane.http.patch(f"/v1/jobs/{job['id']}", json=patch)
    assert answer.status_code == 422
    assert paths(answer)
    assert await plane.get(job["id"]) == job


@pytest.mark.parametrize("id", ["job-aaaaaaaaaaaa", "x", "%00", "..", "job-%ff"])
async def test_what_is_not_there_is_a_404_or_a_422_with_a_sentence(plane: Plane, id: str) -> None:
    for call in ("", "/events", "/attempts", "/metrics", "/logs", "/checkpoints"):
        answer = await plane.http.get(f"/v1/jobs/{id}{call}")
        assert answer.status_code in (404, 422), answer.text
        paths(answer)


async def test_a_wrong_method_names_the_right_ones(plane: Plane) -> None:
    answer = await plane.http.put("/v1/jobs/x", json={})
    assert answer.status_code == 405
    assert answer.headers["allow"] == "DELETE, GET, PATCH"
    paths(answer)


async def test_only_this_machine_s_own_names_are_answered(plane: Plane) -> None:
    assert (await plane.http.get("/v1/jobs", headers={"Host": "evil.example"})).status_code == 400
    assert (await plane.http.get("/v1/jobs", headers={"Origin": "http://evil.example"})).status_code == 403
    assert (await plane.http.get("/v1/jobs", headers={"Origin": "http://127.0.0.1:1"})).status_code == 403
    assert (await plane.http.get("/v1/jobs", headers={"Origin": "null"})).status_code == 403
    own = str(plane.http.base_url).rstrip("/")
    assert (await plane.http.get("/v1/jobs", headers={"Origin": own})).status_code == 200
    assert (await plane.http.get("/v1/jobs", headers={"Host": "localhost:80"})).status_code == 200
    assert (await plane.http.get("/v1/jobs", headers={"Host": "[::1]:80"})).status_code == 200


async def test_a_job_says_how_many_events_it_has(plane: Plane) -> None:
    job = await plane.submit()
    assert job["event_count"] == 1
    worker = await plane.start(job["id"])
    await worker.report(events=happenings("Loaded", "Saved"))
    assert (await plane.get(job["id"]))["event_count"] == 3
    await plane.http.post(f"/v1/jobs/{job['id']}/pause")
    events = (await plane.http.get(f"/v1/jobs/{job['id']}/events")).json()["data"]
    assert (await plane.get(job["id"]))["event_count"] == len(events) == events[-1]["number"] == 4
