"""What reporting costs: the CPU time of a job's launcher against that of its ranks, under a real control plane.

    python -m benchmarks.reporting [--runs 2] [--steps 1000] [--ranks 1]

The job is the hardest case, a tiny model whose every step of milliseconds has seven points to report. The ranks' time
holds their part of reporting too, a thread that writes lines; it is measured by itself, and added to the launcher's.
What the launcher spends before the first step is its start, whatever the job's length: the rate is told without it too.
"""

import contextlib
import io
import json
import signal
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import typer

from tests.e2e.plane import ControlPlane, control_plane
from worker.channel import Channel

ROOT = Path(__file__).parents[1]
POINTS = {
    "train/loss": 1.234567, "train/lr": 1e-3, "train/grad_norm": 0.5, "train/tokens": 1024.0, "time/forward": 0.01,
    "time/backward": 0.02, "time/step": 0.003,
}  # fmt: skip


def spec(steps: int, ranks: int) -> dict[str, Any]:
    """The example's tiny job, longer."""
    tiny: dict[str, Any] = json.loads((ROOT / "examples" / "tiny.json").read_text())
    tiny["stage"] |= {"steps": steps, "data": str(ROOT / "examples" / "data" / "tiny.jsonl")}
    return tiny | {"checkpoint": {"every_steps": 500}, "resources": {"per_node": ranks}}


def channel_seconds_a_step(steps: int = 20_000) -> float:
    """CPU seconds that a rank spends on telling one step: the call, and the thread that writes."""
    ours, theirs = socket.socketpair()
    # Not rank 0's own log, which is this benchmark's output; rank 0's part of the channel all the same.
    with contextlib.redirect_stdout(io.StringIO()):
        return _time_channel(Channel(ours), theirs, steps)


def _time_channel(channel: Channel, theirs: socket.socket, steps: int) -> float:
    began = time.process_time()
    for step in range(1, steps + 1):
        channel.report("training", step=step, tokens=step * 1024, metrics=POINTS)
        if step % 100 == 0:
            # The other end must be emptied: here by this process, which counts a little too much for it.
            channel.flush()
            theirs.recv(2**20)
    spent = (time.process_time() - began) / steps
    # Kept open: its end would end this process.
    theirs.detach()
    return spent


def cpu(process: psutil.Process) -> float:
    """CPU seconds that a process has used by itself."""
    times = process.cpu_times()
    return float(times.user + times.system)


@dataclass(frozen=True)
class Spent:
    """CPU seconds of a job's launcher and of its ranks, up to some moment."""

    launcher: float
    ranks: float


def job(plane: ControlPlane, steps: int, ranks: int) -> tuple[Spent, Spent, int]:
    """What a job has spent when it was first seen to train, and at most half a second before its end; the step then."""
    made = plane.client.jobs.create(spec(steps, ranks))
    lock = plane.data / "attempts" / f"{made.id}-a1" / "lock"
    while not (lock.exists() and lock.read_text().strip()):
        time.sleep(0.05)
    launcher = psutil.Process(int(lock.read_text()))
    own, of_ranks = 0.0, dict[int, float]()
    began: tuple[Spent, int] | None = None
    while True:
        try:
            own = cpu(launcher)
            of_ranks |= {child.pid: cpu(child) for child in launcher.children()}
        except psutil.Error:
            break
        progress = plane.client.jobs.get(made.id).progress
        if began is None and progress is not None and progress.step:
            began = Spent(own, sum(of_ranks.values())), progress.step
        time.sleep(0.5)
    over = plane.client.jobs.wait(made.id, timeout=600)
    assert over.phase == "succeeded", over.message
    assert began is not None, "it was never seen to train: take more steps"
    return began[0], Spent(own, sum(of_ranks.values())), began[1]


def main(runs: int = 2, steps: int = 1000, ranks: int = 1) -> None:
    """Prints the CPU seconds of each run, and the median ratios with their spread."""
    # An end by a signal goes through the `with` below, which ends the control plane and its jobs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    a_step = channel_seconds_a_step()
    print(f"a rank's part: {a_step * 1e6:.0f} µs a step", flush=True)
    whole, steady = [], []
    with tempfile.TemporaryDirectory() as folder:
        allowed = str(ROOT / "examples" / "data")
        with control_plane(Path(folder) / "plane", ALLOWED_PATHS=allowed) as plane:
            for run in range(1, runs + 1):
                began, ended, first = job(plane, steps, ranks)
                whole.append((ended.launcher + a_step * steps) / ended.ranks)
                since = ended.launcher - began.launcher + a_step * (steps - first)
                steady.append(since / (ended.ranks - began.ranks))
                print(
                    f"run {run}: launcher {ended.launcher:.2f} s, of which {began.launcher:.2f} s until step {first}; "
                    f"ranks {ended.ranks:.1f} s, of which {began.ranks:.1f} s: "
                    f"{whole[-1]:.2%} of the whole job, {steady[-1]:.2%} since",
                    flush=True,
                )
    for name, ratios in ("of the whole job", whole), ("of its training", steady):
        print(
            f"reporting / CPU time {name}: median {statistics.median(ratios):.2%} "
            f"({min(ratios):.2%} to {max(ratios):.2%}); at most 1 %"
        )


if __name__ == "__main__":
    typer.run(main)
