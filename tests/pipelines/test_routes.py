"""Pipelines as their owners see them: made whole or not at all, and wanted as a whole."""

from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Plane, paths, write_adapter, write_model
from tests.api.test_inputs import register
from tests.pipelines.conftest import by_step, fork, rehearsal


async def made(plane: Plane, spec: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
    """A new pipeline."""
    answer = await plane.http.post("/v1/pipelines", json=spec or fork(), headers=headers)
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/pipelines/{body['id']}"
    return body


async def read(plane: Plane, id: str) -> dict[str, Any]:
    body: dict[str, Any] = (await plane.http.get(f"/v1/pipelines/{id}")).json()
    return body


async def test_the_jobs_of_all_steps_are_made_at_once_each_after_what_it_needs(plane: Plane) -> None:
    shown = await made(plane)
    assert [step["step"] for step in shown["steps"]] == ["base", "left", "right", "last"]
    assert (shown["name"], shown["phase"], shown["finished_at"]) == ("fork", "queued", None)
    steps = by_step(shown)
    assert steps["base"]["needs"] == [] and steps["base"]["reason"] is None
    need = {"path": "stage.model", "step": "left", "output": "model", "job": steps["left"]["id"]}
    assert steps["last"]["needs"] == [need]
    assert (steps["last"]["reason"], steps["last"]["message"]) == ("AwaitingStep", "waits for the step left")
    job = await plane.get(steps["last"]["id"])
    assert (job["name"], job["pipeline_id"], job["step"]) == ("fork-last", shown["id"], "last")
    assert job["spec"]["stage"]["model"] == "steps/left.model" and job["inputs"] == {}
    listed = (await plane.http.get("/v1/jobs", params={"pipeline": shown["id"], "order": "created_at"})).json()["data"]
    assert [job["step"] for job in listed] == ["base", "left", "right", "last"]
    assert await read(plane, shown["id"]) == shown


async def test_what_is_wrong_in_any_step_is_said_at_once_and_nothing_is_made(plane: Plane) -> None:
    spec = fork()
    spec["steps"]["right"]["stage"]["stepz"] = 1
    spec["steps"]["odd"] = {"stage": {"type": "sft", "model": "/nowhere/at/all", "data": "files/none"}}
    answer = await plane.http.post("/v1/pipelines", json=spec)
    assert answer.status_code == 422
    assert paths(answer) == ["steps.right.stage.stepz"]
    del spec["steps"]["right"]["stage"]["stepz"]
    answer = await plane.http.post("/v1/pipelines", json=spec)
    assert sorted(paths(answer)) == ["steps.odd.stage.data.train", "steps.odd.stage.model"]
    assert (await plane.http.get("/v1/jobs")).json()["data"] == []
    assert (await plane.http.get("/v1/pipelines")).json()["data"] == []


async def test_a_dry_run_checks_everything_and_stores_nothing(plane: Plane) -> None:
    answer = await plane.http.post("/v1/pipelines?dry_run=true", json=fork())
    assert answer.status_code == 200
    assert answer.json()["order"] == ["base", "left", "right", "last"]
    assert answer.json()["steps"]["last"]["stage"]["model"] == "steps/left.model"
    assert (await plane.http.get("/v1/pipelines")).json()["data"] == []
    assert (await plane.http.post("/v1/pipelines?dry_run=true", json={"steps": {}})).status_code == 422


async def test_the_same_key_and_body_make_one_pipeline(plane: Plane) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = await made(plane, **headers)
    again = await plane.http.post("/v1/pipelines", json=fork(), headers=headers)
    assert (again.status_code, again.json()) == (200, first)
    other = await plane.http.post("/v1/pipelines", json=fork("other"), headers=headers)
    job = await plane.http.post("/v1/jobs", json=rehearsal(), headers=headers)
    assert (other.status_code, job.status_code) == (422, 422)
    assert len((await plane.http.get("/v1/jobs")).json()["data"]) == 4


async def test_pages_hold_every_pipeline_once(plane: Plane) -> None:
    for number in range(5):
        await made(plane, fork(f"p{number}"))
    names: list[str] = []
    after: str | None = None
    while True:
        params = {"limit": 2, **({"after": after} if after else {})}
        page = (await plane.http.get("/v1/pipelines", params=params)).json()
        names += [pipeline["name"] for pipeline in page["data"]]
        if (after := page["next"]) is None:
            break
    assert names == ["p4", "p3", "p2", "p1", "p0"]
    named = (await plane.http.get("/v1/pipelines", params={"name": "p3"})).json()["data"]
    assert [pipeline["name"] for pipeline in named] == ["p3"]


async def test_a_pipeline_is_cancelled_paused_and_resumed_as_a_whole(plane: Plane) -> None:
    id = (await made(plane))["id"]
    await plane.set(by_step(await read(plane, id))["base"]["id"], phase="succeeded")
    for wish, desired in (("pause", "pause"), ("resume", "run"), ("cancel", "cancel")):
        answer = await plane.http.post(f"/v1/pipelines/{id}/{wish}")
        assert answer.status_code == 200, answer.text
        wanted = {name: step["desired"] for name, step in by_step(answer.json()).items()}
        assert wanted == {"base": "run", "left": desired, "right": desired, "last": desired}
        assert (await plane.http.post(f"/v1/pipelines/{id}/{wish}")).status_code == 200
    for step in ("left", "right", "last"):
        await plane.set(by_step(await read(plane, id))[step]["id"], phase="cancelled")
    assert (await read(plane, id))["phase"] == "cancelled"
    assert (await plane.http.post(f"/v1/pipelines/{id}/cancel")).status_code == 200
    for wish in ("pause", "resume", "retry"):
        answer = await plane.http.post(f"/v1/pipelines/{id}/{wish}")
        assert answer.status_code == 409
        paths(answer)


async def test_retry_sends_back_what_failed_and_leaves_what_succeeded(plane: Plane) -> None:
    id = (await made(plane))["id"]
    steps = by_step(await read(plane, id))
    for step, phase in (("base", "succeeded"), ("left", "failed"), ("right", "succeeded"), ("last", "failed")):
        await plane.set(steps[step]["id"], phase=phase)
    assert (await read(plane, id))["phase"] == "failed"
    answer = await plane.http.post(f"/v1/pipelines/{id}/retry")
    retried = {name: step["retry_requested"] for name, step in by_step(answer.json()).items()}
    assert retried == {"base": False, "left": True, "right": False, "last": True}
    assert answer.json()["phase"] == "running" or answer.json()["phase"] == "queued"


async def test_what_waits_for_a_cancelled_step_is_not_retried(plane: Plane) -> None:
    id = (await made(plane))["id"]
    steps = by_step(await read(plane, id))
    for step, phase in (("base", "succeeded"), ("left", "cancelled"), ("right", "failed"), ("last", "failed")):
        await plane.set(steps[step]["id"], phase=phase)
    answer = await plane.http.post(f"/v1/pipelines/{id}/retry")
    retried = {name: step["retry_requested"] for name, step in by_step(answer.json()).items()}
    assert retried == {"base": False, "left": False, "right": True, "last": False}
    await plane.set(steps["right"]["id"], phase="succeeded", retry_requested=False)
    answer = await plane.http.post(f"/v1/pipelines/{id}/retry")
    assert answer.status_code == 409 and "cancelled" in answer.json()["detail"]


async def test_a_pipeline_is_deleted_whole_once_it_is_over(plane: Plane) -> None:
    shown = await made(plane, **{"Idempotency-Key": "k"})
    id, steps = shown["id"], by_step(shown)
    assert (await plane.http.delete(f"/v1/pipelines/{id}")).status_code == 409
    for step in steps.values():
        await plane.set(step["id"], phase="succeeded")
    answer = await plane.http.delete(f"/v1/jobs/{steps['base']['id']}")
    assert answer.status_code == 409 and id in answer.json()["detail"]
    assert (await plane.http.delete(f"/v1/pipelines/{id}")).status_code == 204
    for path in (f"/v1/pipelines/{id}", f"/v1/jobs/{steps['base']['id']}"):
        assert (await plane.http.get(path)).status_code == 404
    assert (await made(plane, **{"Idempotency-Key": "k"}))["id"] != id


@pytest.mark.parametrize("wish", ["pause", "resume", "cancel", "retry"])
async def test_an_unknown_pipeline_is_not_found(plane: Plane, wish: str) -> None:
    assert (await plane.http.post(f"/v1/pipelines/pipe-x/{wish}")).status_code == 404
    assert (await plane.http.delete("/v1/pipelines/pipe-x")).status_code == 404


async def test_a_step_outside_a_pipeline_is_refused_with_a_sentence(plane: Plane) -> None:
    for model in ({"from": "base.model"}, "steps/base.model"):
        answer = await plane.http.post("/v1/jobs", json={"stage": {"type": "rehearse", "model": model}})
        assert answer.status_code == 422 and paths(answer) == ["stage.model"]
        assert "only a step of a pipeline" in answer.json()["detail"]


async def test_a_clone_of_a_step_stands_alone_once_its_inputs_are_there(plane: Plane) -> None:
    steps = by_step(await made(plane))
    answer = await plane.http.post(f"/v1/jobs/{steps['left']['id']}/clone")
    assert answer.status_code == 422 and paths(answer) == ["stage.model"]
    alone = await plane.http.post(f"/v1/jobs/{steps['base']['id']}/clone")
    assert alone.status_code == 201 and alone.json()["pipeline_id"] is None and alone.json()["step"] is None


async def test_a_critic_or_an_average_is_named_by_its_id_and_an_adapter_is_refused(
    plane: Plane, tmp_path: Path
) -> None:
    for kind in ("critic", "ema", "adapter"):
        write = write_adapter if kind == "adapter" else write_model
        id = await register(plane, write(tmp_path / kind), kind=kind)
        answer = await plane.http.post("/v1/jobs", json=rehearsal(model=f"models/{id}"))
        if kind == "adapter":
            assert answer.status_code == 422 and "adapter" in answer.json()["detail"]
            continue
        assert answer.status_code == 201, answer.text
        assert answer.json()["inputs"]["stage.model"]["reference"] == f"models/{id}"
        deleted = await plane.http.delete(f"/v1/models/{id}")
        assert deleted.status_code == 409 and answer.json()["id"] in deleted.json()["detail"]
