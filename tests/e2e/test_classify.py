"""A classifier from a POST to its registered model, and what may begin with that."""

from pathlib import Path
from typing import Any

import pytest

from client.problems import ApiError
from client.specfiles import read
from tests.e2e.plane import ControlPlane
from tests.e2e.test_whole_path import finished

ROOT = Path(__file__).parents[2]


def test_a_classifier_is_learnt_registered_and_gone_on_from(plane: ControlPlane) -> None:
    rows = plane.client.files.upload(ROOT / "examples/data/requests.jsonl", purpose="classify").id
    spec: dict[str, Any] = read(str(ROOT / "examples/classify-tiny.yaml"))
    spec["stage"]["data"] = f"files/{rows}"
    job = finished(plane, plane.client.jobs.create(spec).id)
    accuracy = {p.step: p.value for p in plane.client.jobs.metrics(job.id, name="eval/accuracy")}
    assert accuracy[40] > max(0.8, accuracy[0])
    assert plane.client.jobs.metrics(job.id, name="eval/f1/travel")
    (told,) = [event.message for event in plane.client.jobs.events(job.id) if event.type == "Evaluated"]
    assert "weather" in told
    plane.client.jobs.dry_run({"stage": spec["stage"] | {"model": "models/requests"}})
    for wrong, path, says in [
        (
            {"type": "sft", "model": "models/requests", "data": "./x"},
            "stage.model",
            "is a classifier; give a language model",
        ),
        ({"type": "reward", "model": "models/requests", "data": "./x"}, "stage.model", "is a classifier; give"),
    ]:
        with pytest.raises(ApiError) as refused:
            plane.client.jobs.dry_run({"stage": wrong})
        assert path in str(refused.value) and says in str(refused.value), refused.value
