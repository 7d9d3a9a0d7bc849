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
    """A step of three seconds, saved every 4 of its steps; one killed before it has saved is tried all the same."""
    begins = {"model": {"from": f"{after}.model"}} if after else {}
    stage = {"type": "rehearse", "output": True, "steps": steps, "seconds_per_step": 0.1, "seed": seed, **begins}
    return {"stage": stage, "checkpoint": {"every_steps": 4, "grace": "20s"}, "retry": {"max_attempts": 100}}


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
        assert step.models and {model.version for model in step.models} == {1}
        inputs = plane.client.jobs.get(step.id).inputs
        for need in step.needs:
            given = plane.client.models.get(pipeline.step(need.step).models[0].id)
            assert inputs[need.path]["sha256"] == given.sha256
    assert len(list(plane.client.models.all())) == sum(len(step.models) for step in pipeline.steps)


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


DATA = Path(__file__).parents[2] / "examples/data"
TINY = {
    "config": {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
    }
}  # fmt: skip


def step(type: str, **stage: Any) -> dict[str, Any]:
    """A step that trains real models, saved at each step of its own."""
    common = {"max_length": 128, "optimizer": {"lr": 1e-2, "warmup": 0}}
    rest = {"deepspeed": {"precision": "fp32"}, "resources": {"cpu": "1"}, "checkpoint": {"every_steps": 1}}
    return {"stage": {"type": type, **common, **stage}, **rest}


LORA = {"rank": 4, "dropout": 0.1}
REAL = {
    "name": "real",
    "steps": {
        "ppo": step(
            "ppo",
            actor={"model": {"from": "base.model"}, "lora": LORA},
            critic={"model": {"from": "scores.model"}, "lora": LORA},
            reward={"terms": [{"model": {"from": "scores.model"}}], "scale": "running"},
            data=str(DATA / "prompts.jsonl"),
            rollout={"prompts": 8, "slots": 8, "max_new_tokens": 8},
            ppo={"minibatches": 2, "ema": 0.5, "kl": {"coef": 0.1, "target": 0.05, "horizon": 50.0}},
            steps=4,
        ),
        "scores": step("reward", model={"from": "base.model"}, data=str(DATA / "comparisons.jsonl"), batch=6, steps=6),
        "base": step("sft", model=TINY, data=str(DATA / "tiny.jsonl"), batch=8, steps=6),
    },
}


def kill_amid(plane: ControlPlane, job: str) -> None:
    """Kills all processes of a job's attempt once it has saved something."""
    wait_until(lambda: any(plane.data.glob(f"**/{job}/a1/checkpoints/step-*")), seconds=240, what=f"a save of {job}")
    for pid in plane.attempt_pids(job):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def trained(found: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Of all that was handed over, the weights and tokenizers."""
    return {
        title: {name: sha for name, sha in files.items() if name.endswith(".safetensors") or "token" in name}
        for title, files in found.items()
    }


def came_from(lineage: dict[str, Any]) -> dict[str, Any]:
    """A model's lineage, and that of all before it: what it was made of and how, apart from which attempt did it."""
    every = {"it": lineage} | {one["name"]: one["lineage"] for one in lineage["ancestors"].values()}
    return {
        name: {
            "made by": (made["stage"], made["step"], made["spec_sha256"]),
            "data": made["data"],
            "parents": {path: parent["reference"] for path, parent in made["parents"].items()},
        }
        for name, made in every.items()
    }


def test_sft_reward_and_ppo_make_the_same_models_whether_or_not_they_and_the_control_plane_are_killed(
    tmp_path: Path,
) -> None:
    names, settings = ("base", "scores", "ppo"), {"BACK_OFF": "0.3", "ALLOWED_PATHS": str(DATA)}
    with (
        control_plane(tmp_path / "whole", **settings) as whole,
        control_plane(tmp_path / "broken", **settings) as broken,
    ):
        planes = (whole, broken)
        ids = [plane.client.pipelines.create(REAL).id for plane in planes]
        for name in names:
            kill_amid(broken, broken.client.pipelines.get(ids[1]).step(name).id)
            if name != names[-1]:
                wait_until(at_the_border(broken, ids[1], name), seconds=240, what=f"the end of {name}")
                broken.kill()
                broken.start()
        pipelines = [ended(plane, id, seconds=400) for plane, id in zip(planes, ids, strict=True)]
        for plane, pipeline in zip(planes, pipelines, strict=True):
            check_whole(plane, pipeline)
        made = [trained(hashes(plane, pipeline)) for plane, pipeline in zip(planes, pipelines, strict=True)]
        lineages = [came_from(plane.client.models.lineage("real-ppo")) for plane in planes]
    assert [[pipeline.step(name).attempt for name in names] for pipeline in pipelines] == [[1, 1, 1], [2, 2, 2]]
    assert made[0].keys() == {"base.model", "scores.model", "ppo.model", "ppo.adapter", "ppo.ema", "ppo.critic"}
    assert all(any(name.endswith(".safetensors") for name in files) for files in made[0].values())
    assert all("tokenizer.json" in files for files in made[0].values())
    assert made[0] == made[1]
    assert lineages[0] == lineages[1]
    assert lineages[0]["it"]["parents"] == {
        "stage.actor.model": "models/real-base@1",
        "stage.critic.model": "models/real-scores@1",
        "stage.reward.terms.0.model": "models/real-scores@1",
    }
    assert lineages[0]["real-scores"]["parents"] == {"stage.model": "models/real-base@1"}
    assert lineages[0]["real-base"]["data"] == {"stage.data.train": manifest.file_sha256(DATA / "tiny.jsonl")}
