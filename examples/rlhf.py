"""`make demo-rlhf`: SFT, a reward model and PPO of SmolLM2-135M on real dialogues, as one pipeline.

Starts the control plane on loopback, uploads the dialogues, POSTs the pipeline (LoRA), shows all its steps as they run,
prints answers and rewards before SFT, after it and after PPO, and leaves the control plane up until Ctrl-C.
"""

import argparse
import contextlib
import signal
import sys
import time
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
from examples.demo import control_plane, model_file

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
    parser = argparse.ArgumentParser(prog="make demo-rlhf", description=__doc__)
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
