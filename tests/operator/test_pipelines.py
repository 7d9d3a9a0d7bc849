"""The operator and pipelines: a step starts when what it takes is there, and is given exactly that."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api.domain.job import Desired, Fault, Phase, Reason
from api.operator.steps import Steps
from api.store import jobs, models, pipelines
from api.store.pipelines import Whole
from tests.operator.conftest import Plane, until
from tests.operator.test_reconciler import end
from worker.contract.manifest import MANIFEST, describe
from worker.contract.order import Order
from worker.contract.pipeline import parse_pipeline

WEIGHTS = b"\x02\0\0\0\0\0\0\0{}"
LONG = {"seconds": "600"}


def sft(model: Any, **fields: Any) -> dict[str, Any]:
    """A step whose process is the small launcher, whatever its stage says."""
    return {
        "stage": {"type": "sft", "model": model, "data": "files/talks", "max_length": 32},
        "metadata": LONG,
        **fields,
    }


def after(step: str, output: str = "model", **fields: Any) -> dict[str, Any]:
    return sft({"from": f"{step}.{output}"}, **fields)


FORK = {"base": sft("hub/base"), "left": after("base"), "right": after("base"), "last": after("left")}


@pytest.fixture
async def plane(database: Any, data: Path) -> AsyncIterator[Plane]:
    """An operator with a place for every step: of two that may start, either may be the first."""
    async with Plane(database, data, places=4) as running:
        yield running


async def made(plane: Plane, steps: dict[str, Any], name: str = "fork") -> tuple[str, dict[str, str]]:
    """A new pipeline, and its jobs by their steps."""
    spec = parse_pipeline({"name": name, "steps": steps})
    async with plane.database.transaction() as session:
        whole, _ = await pipelines.create(session, spec, {step: {} for step in steps}, project="default")
    for step in whole.steps:
        await plane.wakeups.wake(step.id)
    return whole.row.id, {str(step.step): step.id for step in whole.steps}


async def read(plane: Plane, id: str) -> Whole:
    async with plane.database.reading() as session:
        return await pipelines.get(session, id, "default")


def handed_over(plane: Plane, job: str, kind: str = "model", attempt: int = 1, **config: Any) -> dict[str, Any]:
    """A sealed model in the attempt's outputs, and what the worker says of it."""
    path = f"jobs/{job}/a{attempt}/outputs/{kind}"
    folder = plane.store / path
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config, "of": job}))
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    sealed = describe(folder)
    (folder / MANIFEST).write_bytes(sealed.encode())
    return {"kind": kind, "path": path, "bytes": sealed.total_bytes, "sha256": sealed.sha256}


async def succeeds(plane: Plane, job: str, *kinds: str, **config: Any) -> None:
    """Takes a started job to its end, with outputs."""
    await plane.runs(job)
    end(plane, job, [handed_over(plane, job, kind, **config) for kind in kinds or ("model",)])
    await plane.reaches(job, Phase.SUCCEEDED)


def order_of(plane: Plane, job: str, attempt: int = 1) -> Order:
    """What the attempt was given."""
    return Order.model_validate_json((plane.data / "attempts" / f"{job}-a{attempt}" / "spec.json").read_bytes())


async def test_each_step_is_given_the_model_that_the_one_before_it_made(plane: Plane) -> None:
    _, jobs_ = await made(plane, FORK)
    await plane.runs(jobs_["base"])
    waiting = await plane.job(jobs_["left"])
    assert (waiting.phase, waiting.reason, waiting.attempt) == (Phase.QUEUED, Reason.AWAITING_STEP, 0)
    end(plane, jobs_["base"], [base := handed_over(plane, jobs_["base"])])
    await plane.runs(jobs_["left"])
    given = order_of(plane, jobs_["left"]).inputs["stage.model"]
    assert (given.reference, given.kind, given.sha256) == ("models/fork-base@1", "model", base["sha256"])
    assert Path(given.location) == plane.store / base["path"]
    types = [event.type for event in await plane.events(jobs_["left"])]
    assert types == ["Created", "InputsReady", "Starting", "Running"]
    end(plane, jobs_["left"], [left := handed_over(plane, jobs_["left"])])
    await succeeds(plane, jobs_["right"])
    await plane.runs(jobs_["last"])
    assert order_of(plane, jobs_["last"]).inputs["stage.model"].sha256 == left["sha256"]


async def test_lineage_leads_back_from_the_last_model_to_the_first_file(plane: Plane) -> None:
    _, jobs_ = await made(plane, FORK)
    file = {"reference": "files/talks", "kind": "file", "location": "files/x", "sha256": "a" * 64, "rows": 2}
    for job in jobs_.values():
        await plane.wish(job, inputs={"stage.data.train": file})
    for step in ("base", "left", "right", "last"):
        await succeeds(plane, jobs_[step])
    async with plane.database.transaction() as session:
        base = await models.delete(session, "fork-base", "default")  # lineage outlives what it tells of
        left = await models.get(session, "fork-left", "default")
        last = await models.get(session, "fork-last", "default")
    assert last.lineage["parents"] == {"stage.model": {"reference": "models/fork-left@1", "sha256": left.sha256}}
    ancestors = last.lineage["ancestors"]
    assert {found["name"] for found in ancestors.values()} == {"fork-left", "fork-base"}
    assert ancestors[left.sha256]["lineage"]["parents"]["stage.model"]["sha256"] == base.sha256
    for found in ancestors.values():
        assert found["lineage"]["data"] == {"stage.data.train": "a" * 64}


async def test_steps_that_do_not_need_each_other_run_side_by_side(plane: Plane) -> None:
    _, jobs_ = await made(plane, FORK)
    await succeeds(plane, jobs_["base"])
    await plane.runs(jobs_["left"])
    await plane.runs(jobs_["right"])
    assert (await plane.job(jobs_["left"])).phase == (await plane.job(jobs_["right"])).phase == Phase.RUNNING


async def test_what_needs_a_step_that_failed_fails_with_it_and_the_rest_goes_on(plane: Plane) -> None:
    steps = {**FORK, "left": after("base", metadata={"seconds": "0", "exit": "4"}), "right": after("base")}
    id, jobs_ = await made(plane, steps)
    await succeeds(plane, jobs_["base"])
    row = await plane.reaches(jobs_["last"], Phase.FAILED)
    assert (row.reason, row.fault, row.attempt) == (Reason.DEPENDENCY_FAILED, Fault.USER, 0)
    assert row.message == "the step `left` failed: Diverged"
    assert [(event.type, event.level) for event in await plane.events(jobs_["last"])][-1] == ("Failed", "error")
    await succeeds(plane, jobs_["right"])
    # A retry redoes what failed, and nothing else.
    async with plane.database.transaction() as session:
        await pipelines.retry(session, id, "default")
    await plane.wakeups.wake(jobs_["left"])
    await plane.reaches(jobs_["left"], Phase.FAILED, attempt=2)
    assert [(await plane.job(jobs_[step])).attempt for step in ("base", "left", "right")] == [1, 2, 1]
    row = await plane.reaches(jobs_["last"], Phase.FAILED)
    assert row.attempt == 0


async def test_a_retried_pipeline_goes_on_to_its_end(plane: Plane) -> None:
    id, jobs_ = await made(
        plane, {"base": sft("hub/base", metadata={"seconds": "0", "exit": "3"}), "next": after("base")}
    )
    await plane.reaches(jobs_["next"], Phase.FAILED)
    async with plane.database.transaction() as session:
        row = await jobs.get(session, jobs_["base"], "default", lock=True)
        row.spec, row.spec_sha256 = {**row.spec, "metadata": LONG}, "mended"
        await pipelines.retry(session, id, "default")
    await plane.runs(jobs_["base"], attempt=2)
    assert (await plane.job(jobs_["next"])).reason == Reason.AWAITING_STEP
    folder = handed_over(plane, jobs_["base"], attempt=2)
    words = {"outcome": "succeeded", "reason": "Finished", "exit_code": 0, "outputs": [folder], "step": 1}
    await finish(plane, jobs_["base"], 2, words)
    await succeeds(plane, jobs_["next"])


async def finish(plane: Plane, job: str, attempt: int, words: dict[str, Any]) -> None:
    """The launcher's last words, in place of its own."""
    place = plane.data / "attempts" / f"{job}-a{attempt}"
    (place / ".tmp-words").write_text(json.dumps(words))
    (place / ".tmp-words").replace(place / "exit.json")
    os.kill(int((place / "lock").read_text()), signal.SIGKILL)
    await plane.reaches(job, Phase.SUCCEEDED)


async def test_cancelling_a_pipeline_leaves_what_succeeded(plane: Plane) -> None:
    id, jobs_ = await made(plane, FORK)
    await succeeds(plane, jobs_["base"])
    await plane.runs(jobs_["left"])
    async with plane.database.transaction() as session:
        await pipelines.want(session, id, "default", Desired.CANCEL)
    for job in jobs_.values():
        await plane.wakeups.wake(job)
    for step in ("left", "right", "last"):
        await plane.reaches(jobs_[step], Phase.CANCELLED)
    async with plane.database.reading() as session:
        assert (await models.get(session, "fork-base", "default")).job_id == jobs_["base"]


async def test_a_model_with_too_few_positions_fails_the_step_with_a_sentence(plane: Plane) -> None:
    _, jobs_ = await made(plane, {"base": sft("hub/base"), "next": after("base")})
    await succeeds(plane, jobs_["base"], max_position_embeddings=16)
    row = await plane.reaches(jobs_["next"], Phase.FAILED)
    assert (row.reason, row.fault, row.attempt) == (Reason.INVALID_SPEC, Fault.USER, 0)
    assert row.message == "stage.max_length: the model has 16 positions; write at most that, not 32"


async def test_an_output_that_never_came_fails_the_step_with_a_sentence(plane: Plane) -> None:
    _, jobs_ = await made(plane, {"base": sft("hub/base"), "next": after("base")})
    await plane.runs(jobs_["base"])
    end(plane, jobs_["base"], [])
    row = await plane.reaches(jobs_["next"], Phase.FAILED)
    assert (row.reason, row.attempt) == (Reason.DEPENDENCY_FAILED, 0)
    assert "there is no `model` of it" in row.message


async def test_a_model_that_a_waiting_step_will_take_is_not_deleted(plane: Plane) -> None:
    _, jobs_ = await made(plane, {**FORK, "both": {**after("base"), "stage": join("base", "left")}})
    await succeeds(plane, jobs_["base"])
    await plane.runs(jobs_["left"])
    async with plane.database.transaction() as session:
        with pytest.raises(jobs.Conflict, match=jobs_["both"]):
            await models.delete(session, "fork-base", "default")


def join(actor: str, reference: str) -> dict[str, Any]:
    """A stage that takes models of two steps."""
    return {
        "type": "ppo", "actor": {"model": {"from": f"{actor}.model"}}, "critic": {"model": {"from": f"{actor}.model"}},
        "reference": {"from": f"{reference}.model"}, "reward": {"terms": [{"function": "length"}]},
        "data": "files/prompts",
    }  # fmt: skip


async def test_a_retry_that_is_quicker_than_the_failure_of_what_waits_keeps_that_waiting(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the operator's look at a step and its move, the owner retries what that step needs."""
    steps = {"base": sft("hub/base", metadata={"seconds": "0", "exit": "4"}), "next": after("base")}
    looked, go_on = asyncio.Event(), asyncio.Event()
    original = Steps._move

    async def slow(self: Steps, job: Any, move: Any, *, broken: bool = False, **more: Any) -> None:
        if broken and not go_on.is_set():
            looked.set()
            await go_on.wait()
        await original(self, job, move, broken=broken, **more)

    monkeypatch.setattr(Steps, "_move", slow)
    id, jobs_ = await made(plane, steps)
    await asyncio.wait_for(looked.wait(), 30)
    async with plane.database.transaction() as session:
        row = await jobs.get(session, jobs_["base"], "default", lock=True)
        row.spec, row.spec_sha256 = {**row.spec, "metadata": LONG}, "mended"
        await pipelines.retry(session, id, "default")
    go_on.set()
    await plane.wakeups.wake(jobs_["base"])
    await plane.runs(jobs_["base"], attempt=2)
    assert (await plane.job(jobs_["next"])).phase == Phase.QUEUED
    assert [event.type for event in await plane.events(jobs_["next"])] == ["Created"]


async def test_a_deleted_pipeline_leaves_nothing_but_its_models(plane: Plane) -> None:
    id, jobs_ = await made(plane, {"base": sft("hub/base")})
    await succeeds(plane, jobs_["base"])
    async with plane.database.transaction() as session:
        gone = await pipelines.delete(session, id, "default")
    for job in gone:
        await plane.wakeups.wake(job)

    async def there_is_none() -> bool:
        return await plane.job(jobs_["base"]) is None

    await until(there_is_none)
    async with plane.database.reading() as session:
        assert (plane.store / (await models.get(session, "fork-base", "default")).path).is_dir()
