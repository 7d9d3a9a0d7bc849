"""From an upload to a model, with the store in a bucket: the real server and operator, real workers of one machine."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.plane import ControlPlane, control_plane, story, wait_until
from tests.storage.server import S3
from worker.contract import manifest
from worker.storage import ObjectStore

STEPS = 40


@pytest.fixture
def store(s3: S3, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return ObjectStore(f"s3://{s3.bucket()}/rlhf")


@pytest.fixture
def plane(store: ObjectStore, tmp_path: Path) -> Iterator[ControlPlane]:
    with control_plane(tmp_path / "data", STORE=store.url, BACK_OFF="0.1") as running:
        yield running


def rehearsal(**stage: Any) -> dict[str, Any]:
    return {
        "name": "little",
        "stage": {"type": "rehearse", "steps": STEPS, "seconds_per_step": 0.2, "output": True, **stage},
        "checkpoint": {"every_steps": 5, "keep": 2, "grace": "30s"},
    }


def paths(store: ObjectStore, below: str = "") -> list[str]:
    return sorted(entry.path for entry in store.list(below))


def finished(plane: ControlPlane, job: str) -> None:
    over = plane.client.jobs.wait(job, timeout=200)
    assert over.phase == "succeeded", story(plane.client, job)


def test_a_job_that_is_killed_goes_on_from_the_bucket_and_hands_over_its_model(
    plane: ControlPlane, store: ObjectStore, s3: S3, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(1000)))
    file = plane.client.files.upload(rows, purpose="train")
    assert store.read(f"files/{file.id}.jsonl") == rows.read_bytes()

    job = plane.client.jobs.create(rehearsal()).id
    wait_until(lambda: plane.client.jobs.checkpoints(job), what="a checkpoint")
    pids = plane.attempt_pids(job)
    # All at once: the server, the launcher and its rank.
    plane.kill()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    plane.start()
    finished(plane, job)
    first, second = plane.client.jobs.attempts(job)
    assert (first.reason, second.exit_code) == ("Killed", 0)
    assert second.resumed_from is not None
    assert second.resumed_from >= 5
    # As if nobody had killed it: each step once, and none of them lost.
    points = plane.client.jobs.metrics(job, name="train/loss")
    assert sorted(point.step for point in points) == list(range(1, STEPS + 1))
    assert paths(store, f"logs/{job}")

    kept = [c for c in plane.client.jobs.checkpoints(job) if c.pruned_at is None]
    whole = sorted(e.path for e in store.manifests(f"jobs/{job}") if "/checkpoints/" in e.path)
    assert whole == sorted(checkpoint.path for checkpoint in kept)
    assert len(whole) == 2
    wait_until(lambda: not list(plane.data.glob("attempts/*")), what="the attempts' folders gone")
    assert not [path for path in paths(store, f"jobs/{job}") if "/spool/" in path or "/log/" in path]

    model = plane.client.models.find("little")
    folder = plane.client.models.download(model.id, tmp_path / "model")
    assert manifest.verify(folder).sha256 == model.sha256
    # What a job hands over, the next one finds: in the bucket, by its hash.
    after = plane.client.jobs.create(rehearsal(model="models/little", steps=3)).id
    finished(plane, after)

    for gone in (after, job):
        plane.client.jobs.delete(gone)
    for each in list(plane.client.models.all()):
        plane.client.models.delete(each.id)
    plane.client.files.delete(file.id)
    wait_until(lambda: paths(store) == [], what=f"an empty bucket: {paths(store)}")
    secrets = (s3.secret.encode(), s3.key.encode())
    said = [path for path in tmp_path.rglob("*") if path.is_file() and any(s in path.read_bytes() for s in secrets)]
    assert said == []
