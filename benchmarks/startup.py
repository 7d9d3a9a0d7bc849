"""From POST to the first report, and to the first step, against the bare imports of torch, deepspeed and transformers.

    python -m benchmarks.startup [--runs 5] [--ranks 1]

A and B alternate: the imports alone in as many processes, then a whole job of SmolLM2-135M with LoRA whose model is in
the cache. The first step has begun when the time of its point, less the time that it took, has come.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import typer

from client import Client
from client.records import Job
from tests.e2e.plane import control_plane
from tests.model.conftest import smollm2_gguf

IMPORTS = "import torch, deepspeed, transformers"
STEP = ("time/data", "time/forward", "time/backward", "time/step")


def spec(data: Path, ranks: int) -> dict[str, object]:
    """One step of SmolLM2 on four short dialogues."""
    stage = {
        "type": "sft", "model": str(smollm2_gguf()), "data": str(data), "steps": 1, "batch": 4, "max_length": 64,
        "lora": {"rank": 16},
    }  # fmt: skip
    return {"name": "startup", "stage": stage, "resources": {"per_node": ranks}}


def imports(ranks: int) -> float:
    """Seconds until `ranks` processes at once have imported the three libraries."""
    began = time.monotonic()
    env = os.environ | {"DS_ACCELERATOR": "cpu"}
    started = [
        subprocess.Popen([sys.executable, "-c", IMPORTS], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(ranks)
    ]
    for process in started:
        assert process.wait() == 0
    return time.monotonic() - began


def job(client: Client, data: Path, ranks: int) -> tuple[float, float]:
    """Seconds from the POST to the first accepted report, and to the first step begun."""
    posted = datetime.now(UTC)
    made: Job = client.jobs.create(spec(data, ranks))
    over = client.jobs.wait(made.id, timeout=600)
    assert over.phase == "succeeded", over.message
    (attempt,) = client.jobs.attempts(made.id)
    assert attempt.accepted_at is not None
    first = {p.name: p for p in client.jobs.metrics(made.id) if p.step == 1}
    took = sum(first[name].value for name in STEP)
    return (attempt.accepted_at - posted).total_seconds(), (first["train/loss"].at - posted).total_seconds() - took


def main(runs: int = 5, ranks: int = 1) -> None:
    """Prints the seconds of each run, and the median ratio with its spread."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "talks.jsonl"
        turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello, and welcome."}]
        data.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(8)))
        allowed = os.pathsep.join([folder, str(smollm2_gguf().parent)])
        with control_plane(Path(folder) / "plane", ALLOWED_PATHS=allowed) as plane:
            print("converting the model into the cache, once …", flush=True)
            job(plane.client, data, ranks)
            bare, report, step = [], [], []
            for run in range(1, runs + 1):
                bare.append(imports(ranks))
                first_report, first_step = job(plane.client, data, ranks)
                report.append(first_report)
                step.append(first_step)
                print(
                    f"run {run}: imports {bare[-1]:.2f} s, report {first_report:.2f} s, step {first_step:.2f} s",
                    flush=True,
                )
    ratios = [b / a for a, b in zip(bare, step, strict=True)]
    print(
        f"POST to first report: median {statistics.median(report):.2f} s ({min(report):.2f} to {max(report):.2f}); "
        "at most 2\n"
        f"POST to first step / imports alone, {ranks} rank(s): median {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}); at most 2.5"
    )


if __name__ == "__main__":
    typer.run(main)
