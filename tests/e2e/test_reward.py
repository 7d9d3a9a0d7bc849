"""A reward model from a POST to its measure: real workers learn it, a job on two ranks evaluates it."""

from pathlib import Path
from typing import Any

from client.specfiles import read
from tests.e2e.plane import ControlPlane
from tests.e2e.test_whole_path import finished

ROOT = Path(__file__).parents[2]


def test_a_reward_model_is_learnt_registered_and_evaluated(plane: ControlPlane) -> None:
    rows = plane.client.files.upload(ROOT / "examples/data/pairs.jsonl", purpose="reward").id
    spec: dict[str, Any] = read(str(ROOT / "examples/reward-tiny.yaml"))
    spec["stage"]["data"] = f"files/{rows}"
    job = finished(plane, plane.client.jobs.create(spec).id)
    accuracy = {p.step: p.value for p in plane.client.jobs.metrics(job.id, name="eval/accuracy")}
    assert accuracy[0] == 0.5
    assert accuracy[40] > 0.9
    assert "RewardNormalised" in {event.type for event in plane.client.jobs.events(job.id)}
    measure = {
        "stage": {"type": "evaluate", "model": "models/friendly", "data": f"files/{rows}", "max_length": 256},
        "deepspeed": {"precision": "fp32"},
        "resources": {"per_node": 2, "cpu": "1"},
    }
    exam = finished(plane, plane.client.jobs.create(measure).id)
    (found,) = plane.client.jobs.metrics(exam.id, name="eval/accuracy")
    assert found.step == 1
    assert found.value > 0.9
    assert "Evaluated" in {event.type for event in plane.client.jobs.events(exam.id)}
