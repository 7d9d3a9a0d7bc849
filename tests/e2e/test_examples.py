"""Each example that needs nothing but itself, as it is but for its length, to its end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.specfiles import read
from tests.e2e.plane import ControlPlane, control_plane, story, wait_until
from worker.contract.spec import STAGES

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = sorted(path.name for path in EXAMPLES.glob("*-tiny.yaml"))
STEPS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    settings = {"ALLOWED_PATHS": str(EXAMPLES), "LOCAL_JOBS": "2"}
    with control_plane(tmp_path_factory.mktemp("examples"), **settings) as running:
        yield running


def shortened(spec: dict[str, Any]) -> dict[str, Any]:
    """The same with few steps."""
    stage = {name: value for name, value in spec["stage"].items() if name != "epochs"}
    return {**spec, "stage": {**stage, "steps": STEPS}}


@pytest.mark.parametrize("name", TINY)
def test_an_example_runs_to_its_end(server: ControlPlane, name: str) -> None:
    spec = read(str(EXAMPLES / name))
    if "steps" not in spec:
        job = server.client.jobs.create(shortened(spec)).id
        done = server.client.jobs.wait(job, timeout=300)
        assert done.phase == "succeeded", story(server.client, job)
        assert server.client.models.find(spec["name"]).job_id == job
        return
    steps = {step: shortened(its) for step, its in spec["steps"].items()}
    pipeline = server.client.pipelines.create({**spec, "steps": steps}).id

    def over() -> str | None:
        phase = server.client.pipelines.get(pipeline).phase
        return phase if phase in ("succeeded", "failed") else None

    phase = wait_until(over, seconds=300, what=f"the end of {name}")
    jobs = [step.id for step in server.client.pipelines.get(pipeline).steps]
    assert phase == "succeeded", "\n".join(story(server.client, job) for job in jobs if job)


@pytest.mark.quick
def test_there_is_an_example_of_each_stage() -> None:
    found = {kind for path in EXAMPLES.glob("*.*") if path.suffix in (".yaml", ".json") for kind in _kinds(path)}
    assert found == set(STAGES)


def _kinds(path: Path) -> set[str]:
    spec = read(str(path))
    return {step["stage"]["type"] for step in (spec["steps"].values() if "steps" in spec else [spec])}
