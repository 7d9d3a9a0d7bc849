"""From a POST to a model that answers: the real server, the real operator, real DeepSpeed ranks."""

import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from client.records import Job
from tests.e2e.plane import ControlPlane, control_plane, wait_until
from worker.contract import manifest

TINY = {
    "config": {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 256,
    }
}  # fmt: skip


def sft(data: str | dict[str, Any], *, ranks: int = 1, zero: int = 0, steps: int = 150, **stage: Any) -> dict[str, Any]:
    """An sft job of a model of 40,000 parameters, in fp32."""
    return {
        "name": "talks",
        "stage": {
            "type": "sft", "model": TINY, "data": data, "steps": steps, "batch": 8, "micro_batch": 2, "max_length": 256,
            "optimizer": {"lr": 3e-3}, **stage,
        },
        "deepspeed": {"zero": zero, "precision": "fp32"},
        "resources": {"per_node": ranks, "cpu": "1"},
        "checkpoint": {"every_steps": 50, "grace": "60s"},
    }  # fmt: skip


def finished(plane: ControlPlane, job: str, phase: str = "succeeded") -> Job:
    """The job at its end, which must be in `phase`."""
    over = plane.client.jobs.wait(job, timeout=300)
    events = [f"{e.number} {e.type}: {e.message}" for e in plane.client.jobs.events(job)]
    assert over.phase == phase, (over.reason, over.message, events)
    return over


def losses(plane: ControlPlane, job: str) -> dict[int, float]:
    """The loss of each step, as it stands: a step taken again counts once."""
    points = plane.client.jobs.metrics(job, name="train/loss")
    assert len({p.step for p in points}) == len(points), "a step is shown twice"
    return {p.step: p.value for p in points}


@pytest.fixture(scope="module")
def file(plane: ControlPlane, dialogues: Path) -> str:
    return f"files/{plane.client.files.upload(dialogues, purpose='sft').id}"


@pytest.fixture(scope="module")
def unbroken(plane: ControlPlane, file: str) -> Job:
    """A job of two ranks under ZeRO-2 that nobody disturbed."""
    spec = sft(file, ranks=2, zero=2) | {"evaluate": {"held_out": 0.25, "every_steps": 75}}
    return finished(plane, plane.client.jobs.create(spec).id)


def test_a_post_becomes_a_model_whose_curves_are_whole(plane: ControlPlane, unbroken: Job) -> None:
    curve = losses(plane, unbroken.id)
    assert sorted(curve) == list(range(1, 151))
    assert curve[150] < curve[1]
    names = {p.name for p in plane.client.jobs.metrics(unbroken.id)}
    assert {"train/lr", "train/grad_norm", "train/tokens_per_second", "eval/loss", "eval/perplexity"} <= names
    assert {"time/data", "time/forward", "time/backward", "time/step", "time/save"} <= names
    assert unbroken.progress is not None
    assert (unbroken.progress.step, unbroken.progress.steps) == (150, 150)


def test_the_output_is_whole_and_says_where_it_came_from(plane: ControlPlane, unbroken: Job, tmp_path: Path) -> None:
    model = plane.client.models.find("talks")
    assert model.job_id == unbroken.id
    folder = plane.client.models.download(model.id, tmp_path / "model")
    assert manifest.verify(folder).sha256 == model.sha256
    lineage = json.loads((folder / "lineage.json").read_text())
    assert (lineage["job"], lineage["attempt"], lineage["step"]) == (unbroken.id, 1, 150)


def test_the_model_answers_on_this_machine(plane: ControlPlane, unbroken: Job, tmp_path: Path) -> None:
    folder = plane.client.models.download(plane.client.models.find("talks").id, tmp_path / "model")
    command = [sys.executable, "-m", "worker.chat", str(folder), "--once", "What is two and two?", "--json"]
    said = subprocess.run(
        command, capture_output=True, timeout=180, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert json.loads(said.stdout)["answer"] is not None


def test_only_the_newest_checkpoints_stay(plane: ControlPlane, unbroken: Job) -> None:
    kept = [c.step for c in plane.client.jobs.checkpoints(unbroken.id) if c.pruned_at is None]
    folders = sorted(p.name for p in (plane.data / "store" / "jobs" / unbroken.id / "a1" / "checkpoints").iterdir())
    assert sorted(kept) == [100, 150]
    assert folders == ["step-000000100", "step-000000150"]


def test_a_job_that_was_paused_and_resumed_has_the_losses_of_one_that_was_not(
    plane: ControlPlane, file: str, unbroken: Job
) -> None:
    spec = sft(file, ranks=2, zero=2) | {"evaluate": {"held_out": 0.25, "every_steps": 75}}
    job = plane.client.jobs.create(spec)
    wait_until(lambda: len(losses(plane, job.id)) >= 2, seconds=120, what="the second step")
    plane.client.jobs.pause(job.id)
    wait_until(lambda: plane.client.jobs.get(job.id).phase == "paused", what="the pause")
    plane.client.jobs.resume(job.id)
    assert finished(plane, job.id).attempt == 2
    assert losses(plane, job.id) == losses(plane, unbroken.id)


def test_a_job_one_of_whose_ranks_was_killed_has_the_losses_of_one_that_was_not(
    plane: ControlPlane, file: str, unbroken: Job
) -> None:
    spec = sft(file, ranks=2, zero=2) | {"evaluate": {"held_out": 0.25, "every_steps": 75}}
    job = plane.client.jobs.create(spec)
    wait_until(lambda: len(losses(plane, job.id)) >= 50, seconds=120, what="the first checkpoint")
    os.kill(plane.attempt_pids(job.id)[-1], signal.SIGKILL)
    over = finished(plane, job.id)
    first, second = plane.client.jobs.attempts(job.id)
    assert (first.reason, over.attempt) == ("Killed", 2)
    assert second.resumed_from is not None and second.resumed_from >= 50
    assert losses(plane, job.id) == losses(plane, unbroken.id)


def test_a_loss_that_is_not_finite_ends_the_job_as_diverged(plane: ControlPlane, file: str) -> None:
    # A root of a negative number: no value that follows is a number.
    job = plane.client.jobs.create(sft(file, model={"config": TINY["config"] | {"rms_norm_eps": -1.0}}))
    over = finished(plane, job.id, "failed")
    assert (over.reason, over.fault) == ("Diverged", "user"), over.message
    assert losses(plane, job.id) == {}
    assert not list((plane.data / "store" / "jobs" / job.id).glob("a*/checkpoints/step-*"))


def test_rows_without_a_trainable_token_fail_the_job_before_its_first_step(plane: ControlPlane, file: str) -> None:
    job = plane.client.jobs.create(sft({"train": file, "truncate": True}, max_length=8))
    over = finished(plane, job.id, "failed")
    assert (over.reason, over.fault, over.attempt) == ("InvalidData", "user", 1)
    assert "line 1" in over.message
    assert losses(plane, job.id) == {}


def test_training_goes_on_while_the_control_plane_is_stopped_and_every_report_arrives(
    dialogues: Path, tmp_path: Path
) -> None:
    with control_plane(tmp_path / "plane") as plane:
        uploaded = plane.client.files.upload(dialogues)
        job = plane.client.jobs.create(sft(f"files/{uploaded.id}", steps=400))
        wait_until(lambda: losses(plane, job.id), seconds=120, what="the first step")
        stopped = datetime.now(UTC)
        assert plane.stop() == 0
        spool = plane.data / "store" / "jobs" / job.id / "a1" / "spool"
        wait_until(lambda: len(list(spool.glob("*.json"))) >= 3, what="reports that wait on disk")
        started = datetime.now(UTC)
        plane.start()
        assert finished(plane, job.id).attempt == 1
        points = plane.client.jobs.metrics(job.id, name="train/loss")
        assert [p.step for p in points] == list(range(1, 401))
        assert [p for p in points if stopped < p.at < started], "no step was made while the control plane was away"


@pytest.mark.soak
def test_training_keeps_its_pace_while_the_control_plane_is_away_for_a_minute(dialogues: Path, tmp_path: Path) -> None:
    with control_plane(tmp_path / "plane") as plane:
        uploaded = plane.client.files.upload(dialogues)
        job = plane.client.jobs.create(sft(f"files/{uploaded.id}", steps=100_000))
        wait_until(lambda: 500 in losses(plane, job.id), seconds=300, what="500 steps")
        assert plane.stop() == 0
        stopped = datetime.now(UTC)
        # The minute is what is tried here: nothing else could be waited for.
        time.sleep(60)
        started = datetime.now(UTC)
        plane.start()
        seen = max(losses(plane, job.id))
        wait_until(lambda: max(losses(plane, job.id)) > seen + 500, seconds=300, what="500 steps more")
        plane.client.jobs.cancel(job.id)
        finished(plane, job.id, "cancelled")
        points = plane.client.jobs.metrics(job.id, name="train/loss")
        assert [p.step for p in points] == list(range(1, len(points) + 1))
        took = [(b.at, (b.at - a.at).total_seconds()) for a, b in itertools.pairwise(points)]
        away = [seconds for at, seconds in took if stopped < at < started]
        there = [seconds for at, seconds in took if not stopped <= at <= started]
        ratio = statistics.median(away) / statistics.median(there)
        print(f"\n{len(away)} steps in the minute without a control plane; median step {ratio:.2f} times one with it")
        # Not one long wait, and none that every step pays: both would be the spool's doing.
        assert ratio < 1.25
        assert sum(away) > 50
        assert max(away) < 5
