"""What an owner wants: pause, resume, cancel, retry, clone, delete; in each phase, and twice."""

import pytest

from tests.api.conftest import REHEARSAL, Plane, paths

ALIVE = ("queued", "starting", "running", "finishing", "paused")
FINAL = ("succeeded", "failed", "cancelled")


@pytest.mark.parametrize("phase", ALIVE)
@pytest.mark.parametrize(("call", "desired"), [("pause", "pause"), ("cancel", "cancel"), ("resume", "run")])
async def test_a_wish_is_noted_once_in_every_phase_that_is_not_final(
    plane: Plane, phase: str, call: str, desired: str
) -> None:
    job = (await plane.submit())["id"]
    await plane.set(job, phase=phase, desired="pause" if call == "resume" else "run")
    for _ in range(2):
        answer = await plane.http.post(f"/v1/jobs/{job}/{call}")
        assert answer.status_code == 200, answer.text
        assert (answer.json()["desired"], answer.json()["generation"]) == (desired, 2)
    # The phase is the operator's to change.
    assert (await plane.get(job))["phase"] == phase


@pytest.mark.parametrize("phase", FINAL)
@pytest.mark.parametrize("call", ["pause", "resume", "cancel"])
async def test_a_final_job_is_left_as_it_is(plane: Plane, phase: str, call: str) -> None:
    job = (await plane.submit())["id"]
    await plane.set(job, phase=phase)
    answer = await plane.http.post(f"/v1/jobs/{job}/{call}")
    assert answer.status_code == (200 if (phase, call) == ("cancelled", "cancel") else 409)
    assert (await plane.get(job))["generation"] == 1


async def test_a_cancelled_wish_is_not_taken_back(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    await plane.http.post(f"/v1/jobs/{job}/cancel")
    for call in ("resume", "pause"):
        answer = await plane.http.post(f"/v1/jobs/{job}/{call}")
        assert answer.status_code == 409
        paths(answer)


async def test_only_a_failed_job_is_retried(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    assert (await plane.http.post(f"/v1/jobs/{job}/retry")).status_code == 409
    await plane.set(job, phase="failed", desired="pause")
    for _ in range(2):
        answer = await plane.http.post(f"/v1/jobs/{job}/retry")
        assert (answer.status_code, answer.json()["desired"], answer.json()["generation"]) == (200, "run", 2)
    assert (await plane.http.delete(f"/v1/jobs/{job}")).status_code == 409


async def test_a_retry_that_waits_can_be_held_back_or_called_off(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    await plane.set(job, phase="failed")
    assert (await plane.http.post(f"/v1/jobs/{job}/cancel")).status_code == 409
    await plane.http.post(f"/v1/jobs/{job}/retry")
    for call, wish in (("pause", "pause"), ("resume", "run"), ("cancel", "cancel")):
        answer = await plane.http.post(f"/v1/jobs/{job}/{call}")
        assert (answer.status_code, answer.json()["desired"]) == (200, wish)
    assert (await plane.http.post(f"/v1/jobs/{job}/retry")).status_code == 409


async def test_a_clone_s_changes_are_taken_only_as_json(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    # What a web page's form may send without the browser asking first.
    answer = await plane.http.post(f"/v1/jobs/{job}/clone", content=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    paths(answer)


async def test_a_clone_is_a_new_job_with_what_was_changed(plane: Plane) -> None:
    job = await plane.submit({**REHEARSAL, "name": "first", "metadata": {"a": "1"}})
    answer = await plane.http.post(f"/v1/jobs/{job['id']}/clone", json={"stage": {"steps": 9}, "metadata": {"a": None}})
    assert answer.status_code == 201, answer.text
    clone = answer.json()
    assert clone["cloned_from"] == job["id"] != clone["id"]
    assert (clone["name"], clone["metadata"], clone["spec"]["stage"]["steps"]) == ("first", {}, 9)
    bare = await plane.http.post(f"/v1/jobs/{job['id']}/clone")
    assert bare.status_code == 201 and bare.json()["spec"]["stage"] == job["spec"]["stage"]
    wrong = await plane.http.post(f"/v1/jobs/{job['id']}/clone", json={"stage": {"steps": 0}})
    assert wrong.status_code == 422 and paths(wrong) == ["stage.steps"]


async def test_only_a_final_job_is_deleted_and_then_it_is_gone(plane: Plane) -> None:
    headers = {"Idempotency-Key": "k"}
    job = (await plane.http.post("/v1/jobs", json=REHEARSAL, headers=headers)).json()["id"]
    answer = await plane.http.delete(f"/v1/jobs/{job}")
    assert answer.status_code == 409
    paths(answer)
    await plane.set(job, phase="succeeded")
    assert (await plane.http.delete(f"/v1/jobs/{job}")).status_code == 204
    assert (await plane.http.delete(f"/v1/jobs/{job}")).status_code == 404
    assert (await plane.http.get("/v1/jobs")).json()["data"] == []
    # Its key is free again.
    assert (await plane.http.post("/v1/jobs", json=REHEARSAL, headers=headers)).status_code == 201


async def test_a_wish_wakes_the_operator(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    assert job in await plane.control.wakeups.wait(5)
    await plane.http.post(f"/v1/jobs/{job}/pause")
    assert await plane.control.wakeups.wait(5) == {job}
