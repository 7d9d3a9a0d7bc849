"""`make demo`: from nothing to a chat model that one has trained oneself, by SFT, a reward model and PPO, on two cores.

Starts the control plane on loopback, uploads real dialogues, POSTs a pipeline of SmolLM2-135M (LoRA), shows all its
steps as they run, prints answers and rewards before SFT, after it and after PPO, and leaves the control plane up until
Ctrl-C.
"""

import argparse
import contextlib
import signal
import sys
import time
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from client.api import Client
from client.commands.picture import sparkline
from client.commands.watch_pipeline import watch_pipeline
from client.problems import ApiError
from client.records import Pipeline
from client.terminal import fail, out, plain, say
from examples import dialogues
from examples.rlhf import EVALUATIONS, SYSTEM, model_file, pipeline
from examples.server import control_plane

SHOWN = 5
"""Prompts whose answers are printed; rewards are means over all that are held out."""


def show_answers(client: Client, finished: Pipeline) -> None:
    """For the same prompts and seeds: what the model said before, after SFT and after PPO, and what that was worth."""
    jobs = {what: finished.step(step) for step, what in EVALUATIONS.items()}
    said = {what: {s.index: s for s in client.jobs.samples(job.id)} for what, job in jobs.items()}
    table = Table(show_lines=True, header_style="bold")
    table.add_column("", style="bold", max_width=18)
    for step, what in EVALUATIONS.items():
        table.add_column(what, style="green" if step == "after-ppo" else "")
    shared = sorted(set.intersection(*(set(samples) for samples in said.values())))
    # From end to end of the held-out prompts, which are in the order of their topics.
    for index in shared[:: max(1, -(-len(shared) // SHOWN))]:
        answers = [samples[index] for samples in said.values()]
        table.add_row(
            _line(answers[0].prompt), *(f"{_line(one.answer)}\n[dim]reward {one.reward:+.2f}[/]" for one in answers)
        )
    means = [client.jobs.metrics(job.id, name="eval/reward")[-1].value for job in jobs.values()]
    table.add_row(f"mean reward of {len(shared)} prompts", *(f"[bold]{mean:+.2f}[/]" for mean in means))
    out.print(table)


def _line(text: str) -> str:
    return escape(" ".join(plain(text).split()))


def show_learning(client: Client, finished: Pipeline) -> None:
    """How PPO's reward went, what it cost in KL, and how well the reward model tells good from bad."""

    def curve(step: str, name: str) -> list[float]:
        return [point.value for point in client.jobs.metrics(finished.step(step).id, name=name)]

    rewards, kl = curve("ppo", "ppo/reward"), curve("ppo", "ppo/kl")[-1]
    out.print(
        f"PPO by iteration: {rewards[0]:+.2f} [green]{sparkline(rewards, len(rewards))}[/] {rewards[-1]:+.2f}, "
        f"{kl:.1f} nats an answer from where it began.\n"
        f"The reward model ranks {curve('reward', 'eval/accuracy')[-1]:.0%} of the held-out pairs right."
    )


def invite(client: Client, finished: Pipeline, data: Path) -> None:
    """What may be done with it now."""
    server = "" if client.url.endswith(":8000") else f"--server {client.url} "
    # By its id: an earlier run may have left a job of the same name.
    ppo = finished.step("ppo").id
    out.print()
    for command, what in (
        (f"rlhf {server}chat demo-ppo", "talk to it"),
        (f"rlhf {server}samples {ppo}", "what it answered while it learnt, with rewards"),
        (f"rlhf {server}metrics {ppo}", "its curves"),
        (f"rlhf {server}submit examples/tiny.json --watch", "another job, of seconds"),
    ):
        out.print(f"  [bold].venv/bin/{command}[/]  [dim]{what}[/]", soft_wrap=True)
    out.print(f"\nThe control plane stays up at [bold]{client.url}[/]; Ctrl-C stops it. Everything stays in {data}.")


def stop(client: Client, started: Pipeline) -> None:
    """Cancels a pipeline that was interrupted, and waits until its processes are gone."""
    with contextlib.suppress(ApiError, TimeoutError, KeyboardInterrupt):
        if not client.pipelines.get(started.id).final:
            say("[dim]The step that runs stops after its update; Ctrl-C again leaves that to itself …[/]")
            client.pipelines.cancel(started.id)
            client.pipelines.wait(started.id, timeout=60, every=0.2)


def run(data: Path, *, steps: int, iterations: int, seed: int, stay: bool) -> int:
    """The whole demo; gives the exit code."""
    began = time.monotonic()
    data.mkdir(parents=True, exist_ok=True)
    gguf = model_file()
    written = dialogues.write(data, SYSTEM)
    with control_plane(data, [Path.cwd(), gguf.parent]) as client:
        out.print(f"[green]✓[/] The control plane is up at [bold]{client.url}[/] (its API: {client.url}/docs)")
        uploaded = {name: client.files.upload(path) for name, path in written._asdict().items()}
        rows = {name: file.rows for name, file in uploaded.items()}
        out.print(
            f"[green]✓[/] {rows['dialogues']} dialogues, {rows['comparisons']} pairs of answers, {rows['prompts']} "
            f"prompts to learn from; {rows['held_out_prompts']} prompts held out"
        )
        files = {name: f"files/{file.id}" for name, file in uploaded.items()}
        made = client.pipelines.create(pipeline(gguf, files, steps=steps, iterations=iterations, seed=seed))
        out.print(f"[green]✓[/] POSTed {made.id}: SmolLM2-135M, LoRA, {len(made.steps)} steps\n")
        try:
            code = watch_pipeline(client, made, as_json=False)
            if code:
                return code
            made = client.pipelines.get(made.id)
            out.print("\nThe same held-out prompts, by the same seeds; the reward is mostly friendliness")
            show_answers(client, made)
            show_learning(client, made)
            out.print(f"\nAll of this took {time.monotonic() - began:.0f} s.")
            if stay:
                invite(client, made, data)
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
    parser.add_argument("--iterations", type=int, default=12, help="of PPO")
    parser.add_argument("--seed", type=int, default=17, help="of PPO")
    parser.add_argument("--exit", action="store_true", help="end after printing")
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        return run(
            given.data.absolute(),
            steps=given.steps,
            iterations=given.iterations,
            seed=given.seed,
            stay=not given.exit,
        )
    except (ApiError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    sys.exit(main())
