"""Pipelines by the client and the command line, against a real control plane with real worker processes."""

import io
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from client import Client, Problem
from client.commands.followed_pipeline import FollowedPipeline
from client.commands.watch_pipeline import picture
from tests.client.conftest import Shell
from tests.e2e.plane import wait_until
from worker.contract.pipeline import parse_pipeline


def walk(after: str | None = None, steps: int = 3, **stage: Any) -> dict[str, Any]:
    """A rehearsal that hands over what it came to, and goes on from that of another."""
    begins = {"model": {"from": f"{after}.model"}} if after else {}
    return {"stage": {"type": "rehearse", "output": True, "steps": steps, "seconds_per_step": 0.01, **begins, **stage}}


def fork(name: str, **changed: dict[str, Any]) -> dict[str, Any]:
    steps = {"base": walk(), "left": walk("base"), "right": walk("base"), "last": walk("left")}
    return {"name": name, "steps": {**steps, **changed}}


def loss_of(folder: str) -> float:
    """The single number of a rehearsal's model."""
    number: float = struct.unpack("<d", (Path(folder) / "model.safetensors").read_bytes()[-8:])[0]
    return number


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def written(spec: dict[str, Any]) -> str:
        path = tmp_path / "pipeline.json"
        path.write_text(json.dumps(spec))
        return str(path)

    return written


def test_a_pipeline_runs_to_its_end_and_each_step_goes_on_where_the_one_before_it_ended(
    rlhf: Shell, client: Client
) -> None:
    made = client.pipelines.create(parse_pipeline(fork("walks")))
    seen: set[str] = set()
    ended = client.pipelines.wait(made.id, timeout=120, seen=lambda now: seen.add(now.phase))
    assert ended.phase == "succeeded" and ended.finished_at is not None and seen <= {"queued", "running", "succeeded"}
    for step, before in (("left", "base"), ("last", "left")):
        first = client.jobs.metrics(ended.step(step).id, name="train/loss")[0].value
        model = client.models.find(f"walks-{before}")
        assert model.location is not None
        # One step of the walk: pulled by 2 %, and a little noise.
        assert abs(first - 0.98 * loss_of(model.location)) < 0.3
        assert client.jobs.get(ended.step(step).id).inputs["stage.model"]["sha256"] == model.sha256
    lineage = client.models.lineage("walks-last")
    assert {ancestor["name"] for ancestor in lineage["ancestors"].values()} == {"walks-base", "walks-left"}
    tree = rlhf("models", "lineage", "walks-last").out
    assert re.search(r"^walks-last@1 .*\n.*models/walks-left@1 .*\n.*models/walks-base@1 ", tree), tree
    client.pipelines.delete(made.id)
    with pytest.raises(Problem):
        client.pipelines.get(made.id)
    assert client.models.find("walks-last").job_id == ended.step("last").id


def test_submit_watch_and_show_in_a_pipe(rlhf: Shell, file: Any, client: Client) -> None:
    source = file(fork("piped"))
    assert "base -> left -> right -> last" in rlhf("pipeline", "validate", source).out.replace("\n", " ")
    dry = rlhf("pipeline", "submit", source, "--dry-run")
    assert dry.code == 0 and "All steps are right" in dry.out
    done = rlhf("pipeline", "submit", source, "--watch", "--set", "steps.base.stage.steps=2")
    assert done.code == 0, done.err
    assert re.search(r"^left +\d\d:\d\d:\d\d +InputsReady +stage.model: models/piped-base@1$", done.out, re.MULTILINE)
    assert "✓ piped succeeded" in done.out
    shown = rlhf("pipeline", "show", "piped")
    assert shown.code == 0 and "piped-last@1" in shown.out
    assert "4/4" in rlhf("pipeline", "list", "--name", "piped").out
    [line] = [entry for entry in rlhf("pipeline", "list", "--json").json if entry["name"] == "piped"]
    assert [step["step"] for step in line["steps"]] == ["base", "left", "right", "last"]
    # By its name, `rlhf watch` finds it too; and a step's job by its own.
    again = rlhf("watch", "piped", "--json")
    assert again.code == 0 and again.lines[-1]["phase"] == "succeeded"
    assert rlhf("watch", "piped-left", "--json").lines[-1]["step"] == "left"
    assert rlhf("watch", client.pipelines.find("piped").id).code == 0


def test_a_failure_is_told_and_retry_goes_on_from_it(rlhf: Shell, file: Any, client: Client) -> None:
    fault = {"kind": "diverged", "step": 2, "attempt": 1}
    source = file(fork("broken", left=walk("base", fault=fault)))
    failed = rlhf("pipeline", "submit", source, "--watch")
    assert failed.code == 1
    assert re.search(r"✗ left failed +Diverged", failed.out)
    assert re.search(r"✗ last failed +DependencyFailed: the step `left` failed", failed.out)
    assert "rlhf pipeline retry" in failed.err
    before = client.pipelines.find("broken")
    assert rlhf("pipeline", "retry", "broken").code == 0
    assert rlhf("pipeline", "watch", "broken").code == 0
    ended = client.pipelines.get(before.id)
    attempts = {step.step: step.attempt for step in ended.steps}
    assert attempts == {"base": 1, "left": 2, "right": 1, "last": 1}
    assert [m.version for m in ended.step("base").models] == [1]
    assert rlhf("pipeline", "retry", "broken").code == 1
    assert rlhf("pipeline", "delete", "broken", "--yes").code == 0


def test_pause_resume_and_cancel_a_pipeline(rlhf: Shell, client: Client) -> None:
    made = client.pipelines.create(fork("held", base=walk(steps=3000)))
    wait_until(lambda: client.pipelines.get(made.id).step("base").phase == "running", what="its start")
    assert rlhf("pipeline", "pause", "held").code == 0
    assert client.pipelines.wait(made.id, timeout=60).resting
    assert rlhf("pipeline", "resume", made.id).code == 0
    wait_until(lambda: client.pipelines.get(made.id).step("base").attempt == 2, what="its second attempt")
    assert client.pipelines.get(made.id).step("left").reason == "AwaitingStep"
    assert rlhf("pipeline", "cancel", "held", "--json").json["id"] == made.id
    assert client.pipelines.wait(made.id, timeout=60).phase == "cancelled"
    assert rlhf("pipeline", "resume", "held").code == 1


def test_what_is_wrong_is_told_with_its_path(rlhf: Shell, file: Any) -> None:
    source = file(fork("wrong", left=walk("bsae")))
    for command in ("validate", "submit"):
        said = rlhf("pipeline", command, source)
        assert said.code == 2
        assert "steps.left.stage.model" in said.err and "did you mean `base`?" in said.err
    assert "rlhf pipeline submit" in rlhf("submit", source).err
    assert rlhf("pipeline", "show", "no-such-pipeline").code == 2
    assert rlhf("watch", "no-such-thing").code == 2


def test_the_picture_has_a_line_a_step(client: Client) -> None:
    made = client.pipelines.create(fork("drawn"))
    client.pipelines.wait(made.id, timeout=120)
    followed = FollowedPipeline(client, made)
    followed.look()
    console = Console(width=120, record=True, file=io.StringIO(), force_terminal=True)
    console.print(picture(followed))
    text = console.export_text()
    for step in ("base", "left", "right", "last"):
        assert re.search(rf"^{step} +succeeded .* 3/3 +loss \d", text, re.MULTILINE), text
    assert "drawn-last@1" in text
    assert followed.over
