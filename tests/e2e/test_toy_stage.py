"""A stage of one's own: how little of the tree it takes, and that all of the product knows it then."""

import difflib
import filecmp
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.plane import ControlPlane, wait_until

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "worker", "client", "scripts")
CONTRACT = '''
"""Texts, learnt against their length."""

from typing import Literal

from pydantic import Field

from worker.contract.stages import TrainStage
from worker.contract.traits import Traits


class ToyStage(TrainStage):
    """A language model of a loss that is `sharpness` times as large."""

    traits = Traits(rows=("text",), lr=1e-3)
    type: Literal["toy"]
    sharpness: float = Field(default=2.0, description="how much the loss is larger")
'''
STAGE = '''
"""A stage of one's own."""

from worker.context import Context
from worker.contract.protocol import Output
from worker.contract.toy import ToyStage
from worker.losses import token_loss_sum
from worker.method import Method
from worker.training import train


def run(context: Context) -> list[Output]:
    """Trains the spec's model."""
    return train(context, Toy(context.order.spec.stage))


class Toy(Method[ToyStage]):
    """The loss of a language model, larger."""

    def objective(self, model, batch):
        """The loss alone."""
        return self.stage.sharpness * token_loss_sum(model, batch)
'''
MODEL = {
    "config": {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
               "num_attention_heads": 2, "max_position_embeddings": 64},
}  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree with the stage added to it."""
    made = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, made / package, ignore=shutil.ignore_patterns("__pycache__"))
    (made / "worker" / "contract" / "toy.py").write_text(CONTRACT)
    (made / "worker" / "stages" / "toy.py").write_text(STAGE)
    registry = made / "worker" / "contract" / "spec.py"
    before = registry.read_text()
    after = before.replace("Stage = Annotated[\n    ", "Stage = Annotated[\n    toy.ToyStage | ")
    registry.write_text(
        after.replace("\nfrom worker.contract.", "\nfrom worker.contract import toy\nfrom worker.contract.", 1)
    )
    return made


@pytest.fixture(scope="module")
def plane(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    made = ControlPlane(tmp_path_factory.mktemp("toy") / "data", tree=tree)
    yield made.start()
    made.close()


def told(tree: Path, *command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=tree, capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_it_takes_its_own_file_its_part_of_the_spec_and_an_entry_in_the_registry(tree: Path) -> None:
    new, changed, lines = [], [], 0
    for package in PACKAGES:
        for path in (tree / package).rglob("*.py"):
            ours = ROOT / path.relative_to(tree)
            if not ours.exists():
                new.append(str(path.relative_to(tree)))
            elif not filecmp.cmp(path, ours, shallow=False):
                changed.append(str(path.relative_to(tree)))
                diff = difflib.ndiff(ours.read_text().splitlines(), path.read_text().splitlines())
                lines += sum(line.startswith("+ ") for line in diff)
    assert sorted(new) == ["worker/contract/toy.py", "worker/stages/toy.py"]
    assert changed == ["worker/contract/spec.py"]
    assert lines == 2  # the entry, and the import that it needs


def test_it_is_described_beside_the_others(tree: Path) -> None:
    page = told(tree, "scripts.describe_spec")
    assert '| toy | `{"text"}` |' in page
    assert "## stage: toy" in page
    assert "how much the loss is larger" in page


def test_a_job_of_it_is_checked_estimated_trained_and_hands_over_a_model(plane: ControlPlane, tmp_path: Path) -> None:
    with httpx.Client(base_url=plane.url, timeout=30) as http:
        rows = b"".join(b'{"text": "the cat sat on the mat, number %d"}\n' % number for number in range(8))
        sent = http.post("/v1/files", data={"purpose": "train"}, files={"file": ("rows.jsonl", rows)})
        stage = {"type": "toy", "model": MODEL, "data": f"files/{sent.json()['id']}", "max_length": 32, "steps": 3}
        spec = {"stage": stage, "deepspeed": {"precision": "fp32"}}
        wrong = http.post("/v1/jobs", json={"stage": stage | {"sharpnes": 3}})
        assert wrong.status_code == 422
        assert "did you mean `sharpness`?" in wrong.text
        estimate = http.post("/v1/estimate", json=spec).json()
        assert estimate["roles"][0]["trained"] > 0
        job = http.post("/v1/jobs", json=spec).json()["id"]

        def over() -> str | None:
            phase = http.get(f"/v1/jobs/{job}").json()["phase"]
            return phase if phase in ("succeeded", "failed") else None

        assert wait_until(over, seconds=120) == "succeeded", http.get(f"/v1/jobs/{job}/events").text
        metrics = http.get(f"/v1/jobs/{job}/metrics", params={"name": "train/loss"}).json()["data"]
        # Twice ln 259 or so, at first.
        assert [point["step"] for point in metrics] == [1, 2, 3]
        assert 10.5 < metrics[0]["value"] < 12.0
        assert http.get("/v1/models").json()["data"][0]["name"] == "toy"
