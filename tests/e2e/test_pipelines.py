"""Pipelines under faults: however it is broken, a pipeline ends in the same models as one that was not.

Most are of rehearsals, whose models are a single number that depends on every step before; one trains real models.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client import Unreachable
from client.records import Pipeline
from tests.e2e.plane import ControlPlane, control_plane, wait_until
from worker.contract import manifest


def walk(*, after: str | None = None, steps: int = 30, seed: int = 1) -> dict[str, Any]:
    """A step of about three seconds, saved every 4 steps of its own."""
    begins = {"model": {"from": f"{after}.model"}} if after else {}
    stage = {"type": "rehearse", "output": True, "steps": steps, "seconds_per_step": 0.1, "seed": seed, **begins}
    return {"stage": stage, "checkpoint": {"every_steps": 4, "grace": "20s"}}


WALKS = {
    "name": "walks",
    "steps": {
        "base": walk(seed=1),
        "left": walk(after="base", seed=2),
        "right": walk(after="base", seed=3),
        "last": walk(after="left", seed=4),
    },
}


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane that the test may kill, with a short back-off."""
    with control_plane(tmp_path / "data", LOCAL_JOBS="2", BACK_OFF="0.3") as running:
        yield running


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What a pipeline comes to that nothing happens to."""
    with control_plane(tmp_path_factory.mktemp("unbroken"), LOCAL_JOBS="2") as plane:
        made = plane.client.pipelines.create(WALKS)
        return hashes(plane, ended(plane, made.id))


def ended(plane: ControlPlane, id: str, seconds: float = 240) -> Pipeline:
    """The pipeline once it is over, over restarts of the control plane."""

    def there() -> Pipeline | None:
        try:
            found = plane.client.pipelines.get(id)
        except Unreachable:
            return None
        return found if found.final else None

    return wait_until(there, seconds=seconds, what=f"the end of {id}") or pytest.fail("no answer")


def hashes(plane: ControlPlane, pipeline: Pipeline) -> dict[str, dict[str, str]]:
    """By step, the hashes of all that it handed over but its lineage, which names its job."""
    assert pipeline.phase == "succeeded", [(s.step, s.phase, s.reason, s.message) for s in pipeline.steps]
    found: dict[str, dict[str, str]] = {}
    for step in pipeline.steps:
        for handed in step.models:
            model = plane.client.models.get(handed.id)
            assert model.location is not None
            files = manifest.verify(Path(model.location)).files
            found[f"{step.step}.{handed.kind}"] = {n: e.sha256 for n, e in files.items() if n != "lineage.json"}
    return found


def check_whole(plane: ControlPlane, pipeline: Pipeline) -> None:
    """Each step succeeded and was registered once, and was given what the step before it handed over."""
    assert pipeline.phase == "succeeded", [(s.step, s.phase, s.reason, s.message) for s in pipeline.steps]
    for step in pipeline.steps:
        events = plane.client.jobs.events(step.id)
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        assert [event.type for event in events].count("Succeeded") == 1
        assert [model.version for model in step.models] == [1]
        inputs = plane.client.jobs.get(step.id).inputs
        for need in step.needs:
            given = plane.client.models.get(pipeline.step(need.step).models[0].id)
            assert inputs[need.path]["sha256"] == given.sha256
    assert len(list(plane.client.models.all())) == len(pipeline.steps)


def at_the_border(plane: ControlPlane, id: str, step: str) -> Callable[[], bool]:
    """Whether a step has just succeeded, so that what needs it is about to be given it."""

    def crossed() -> bool:
        return plane.client.pipelines.get(id).step(step).phase == "succeeded"

    return crossed


def test_a_control_plane_killed_between_any_two_steps_ends_in_the_same_models(
    mortal: ControlPlane, unbroken: dict[str, dict[str, str]]
) -> None:
    made = mortal.client.pipelines.create(WALKS)
    mortal.kill()
    mortal.start()
    for step in ("base", "left"):
        wait_until(at_the_border(mortal, made.id, step), seconds=120, what=f"the end of {step}")
        mortal.kill()
        mortal.start()
    pipeline = ended(mortal, made.id)
    check_whole(mortal, pipeline)
    assert hashes(mortal, pipeline) == unbroken


def killed_at_random(plane: ControlPlane, expected: dict[str, dict[str, str]], *, kills: int, seed: int) -> None:
    """Kills the control plane at any moment, and now and then all processes of a step's attempt with it."""
    chance = random.Random(seed)
    made = plane.client.pipelines.create(WALKS)
    for _ in range(kills):
        time.sleep(chance.uniform(0.0, 2.5))
        running = [s for s in plane.client.pipelines.get(made.id).steps if s.phase in ("starting", "running")]
        plane.kill()
        if running and chance.random() < 0.5:
            for pid in plane.attempt_pids(chance.choice(running).id):
                os.kill(pid, signal.SIGKILL)
        time.sleep(chance.uniform(0.0, 0.5))
        plane.start()
    pipeline = ended(plane, made.id)
    check_whole(plane, pipeline)
    assert hashes(plane, pipeline) == expected, f"seed {seed}"


def test_a_pipeline_killed_at_random_ends_in_the_same_models(
    mortal: ControlPlane, unbroken: dict[str, dict[str, str]]
) -> None:
    killed_at_random(mortal, unbroken, kills=3, seed=time.time_ns())


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_a_pipeline_killed_at_random_again_and_again(
    mortal: ControlPlane, unbroken: dict[str, dict[str, str]], seed: int
) -> None:
    killed_at_random(mortal, unbroken, kills=12, seed=seed)


def test_a_worker_killed_in_each_step_ends_in_the_same_models(
    mortal: ControlPlane, unbroken: dict[str, dict[str, str]]
) -> None:
    made = mortal.client.pipelines.create(WALKS)
    for name in ("base", "left", "last"):

        def saved(step: str = name) -> bool:
            found = mortal.client.pipelines.get(made.id).step(step)
            return found.phase == "running" and bool(mortal.client.jobs.checkpoints(found.id))

        wait_until(saved, seconds=120, what=f"a checkpoint of {name}")
        for pid in mortal.attempt_pids(made.step(name).id):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    pipeline = ended(mortal, made.id)
    assert [pipeline.step(name).attempt for name in ("base", "left", "last")] == [2, 2, 2]
    check_whole(mortal, pipeline)
    assert hashes(mortal, pipeline) == unbroken


TINY = {
    "config": {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True,
    }
}  # fmt: skip


def real(dialogues: Path) -> dict[str, Any]:
    """sft, then a longer sft on what that made, in fp32."""
    common = {"type": "sft", "data": str(dialogues), "batch": 4, "max_length": 256, "optimizer": {"lr": 1e-2}}
    rest = {"deepspeed": {"precision": "fp32"}, "resources": {"cpu": "1"}, "checkpoint": {"every_steps": 2}}
    return {
        "name": "real",
        "steps": {
            "more": {"stage": {**common, "model": {"from": "first.model"}, "steps": 6}, **rest},
            "first": {"stage": {**common, "model": TINY, "steps": 4}, **rest},
        },
    }


def test_real_models_are_the_same_whether_or_not_a_pipeline_was_killed(tmp_path: Path, dialogues: Path) -> None:
    found = []
    for broken in (False, True):
        with control_plane(tmp_path / str(broken), BACK_OFF="0.3", ALLOWED_PATHS=str(dialogues.parent)) as plane:
            made = plane.client.pipelines.create(real(dialogues))
            if broken:
                wait_until(at_the_border(plane, made.id, "first"), seconds=240, what="the end of the first step")
                plane.kill()
                plane.start()

                def saved(plane: ControlPlane = plane, job: str = made.step("more").id) -> bool:
                    return bool(plane.client.jobs.checkpoints(job))

                wait_until(saved, seconds=240, what="a checkpoint of the second step")
                for pid in plane.attempt_pids(made.step("more").id):
                    os.kill(pid, signal.SIGKILL)
            pipeline = ended(plane, made.id, seconds=400)
            check_whole(plane, pipeline)
            found.append(hashes(plane, pipeline))
            lineage = plane.client.models.lineage("real-more")
            (parent,) = lineage["ancestors"].values()
            assert parent["lineage"]["data"] == lineage["data"] == {"stage.data.train": manifest.file_sha256(dialogues)}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(found[0]["more.model"])
    assert found[0] == found[1]
