"""Pipelines: send one, see what there is, follow it, and change what is wanted of it."""

from typing import Annotated

import typer

from client.api import Client
from client.commands.follow import left_running
from client.commands.options import AsJson, Server
from client.commands.submit import Settings, Source
from client.commands.watch_pipeline import watch_pipeline
from client.records import Pipeline
from client.specfiles import change, read
from client.terminal import age, escape, out, pairs, phase, print_json, progress_of, say, table, why
from worker.contract.pipeline import parse_pipeline

app = typer.Typer(no_args_is_help=True, help="Jobs joined by their outputs.")
PipelineName = Annotated[str, typer.Argument(metavar="PIPELINE", help="Its id, its name, or the beginning of either.")]
PipelineOrNewest = Annotated[
    str | None,
    typer.Argument(
        metavar="PIPELINE", help="Its id, its name, or the beginning of either; absent: the newest.", show_default=False
    ),
]


def _found(server: Client, name: str | None) -> Pipeline:
    if name is not None:
        return server.pipelines.find(name)
    newest = server.pipelines.newest()
    say(f"[dim]the newest pipeline: {escape(newest.name)} ({newest.id})[/]")
    return newest


@app.command()
def submit(
    server: Server,
    source: Source,
    *,
    settings: Settings = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check it on the server; make nothing.")] = False,
    key: Annotated[
        str | None, typer.Option(help="An Idempotency-Key: the same key never makes a second one, for 24 h.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send a pipeline to the control plane, which checks it as a whole."""
    wanted = change(read(source), settings or [])
    if dry_run:
        checked = server.pipelines.dry_run(wanted)
        if as_json:
            print_json(checked)
        else:
            order = escape(" -> ".join(checked.order))
            out.print(f"[green]✓[/] All steps are right, and what they refer to is there: {order}", soft_wrap=True)
        return
    made = server.pipelines.create(wanted, key=key)
    if watch:
        if not as_json:
            say(f"[green]✓[/] {escape(made.name)} is pipeline [bold]{made.id}[/]")
        with left_running(made):
            raise typer.Exit(watch_pipeline(server, made, as_json=as_json))
    if as_json:
        print_json(made)
    else:
        out.print(f"[green]✓[/] {escape(made.name)} is pipeline [bold]{made.id}[/] of {len(made.steps)} steps")
        say(f"[dim]rlhf watch {made.id}  shows how it goes[/]")


@app.command()
def validate(source: Source, settings: Settings = None, as_json: AsJson = False) -> None:
    """Check a pipeline as the control plane would, but for the files and models it refers to."""
    checked = parse_pipeline(change(read(source), settings or []))
    if as_json:
        print_json(checked)
    else:
        out.print(f"[green]✓[/] {escape(checked.title)} is right: {escape(' -> '.join(checked.in_order()))}")


@app.command("list")
def list_pipelines(
    server: Server,
    *,
    name: Annotated[str | None, typer.Option(help="Only pipelines of this name.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Pipelines, newest first."""
    found = list(server.pipelines.all(name=name, limit=limit))
    if as_json:
        print_json(found)
        return
    table(
        {"id": "left", "name": "left", "phase": "left", "steps": "left", "age": "right"},
        ((p.id, escape(p.name), phase(p.phase), _steps(p), age(p.created_at)) for p in found),
        "No pipelines. `rlhf pipeline submit examples/pipeline.yaml --watch` makes one.",
    )


def _steps(pipeline: Pipeline) -> str:
    done = sum(step.phase == "succeeded" for step in pipeline.steps)
    return f"{done}/{len(pipeline.steps)}"


@app.command()
def show(server: Server, pipeline: PipelineOrNewest = None, as_json: AsJson = False) -> None:
    """One pipeline: where each of its steps is, and why."""
    found = _found(server, pipeline)
    if as_json:
        print_json(found)
        return
    pairs([("pipeline", f"[bold]{escape(found.name)}[/]  {found.id}"), ("phase", phase(found.phase))])
    table(
        {"step": "left", "job": "left", "stage": "left", "needs": "left", "phase": "left", "at": "right", "": "cut"},
        (
            (
                escape(s.step),
                s.id,
                s.stage,
                escape(", ".join(dict.fromkeys(need.step for need in s.needs))),
                phase(s.phase),
                progress_of(s),
                " ".join(f"{m.name}@{m.version}" for m in s.models if m.kind == "model")
                or f"[dim]{why(s.reason, s.message)}[/]",
            )
            for s in found.steps
        ),
        "It has no steps.",
    )


@app.command()
def watch(server: Server, pipeline: PipelineOrNewest = None, json_lines: AsJson = False) -> None:
    """Follow all steps to their end. Exit code 0 only if all succeed; Ctrl-C leaves them running."""
    found = _found(server, pipeline)
    with left_running(found):
        raise typer.Exit(watch_pipeline(server, found, as_json=json_lines))


def _answer(pipeline: Pipeline, sentence: str, as_json: bool) -> None:
    if as_json:
        print_json(pipeline)
    else:
        out.print(f"[green]✓[/] {escape(pipeline.name)} ({pipeline.id}) {sentence}")


@app.command()
def pause(server: Server, pipeline: PipelineName, as_json: AsJson = False) -> None:
    """Save and stop all steps that are not over; `resume` goes on from there."""
    _answer(server.pipelines.pause(server.pipelines.find(pipeline).id), "saves and pauses.", as_json)


@app.command()
def resume(server: Server, pipeline: PipelineName, as_json: AsJson = False) -> None:
    """Go on with a paused pipeline."""
    _answer(server.pipelines.resume(server.pipelines.find(pipeline).id), "goes on.", as_json)


@app.command()
def cancel(server: Server, pipeline: PipelineName, as_json: AsJson = False) -> None:
    """Stop all steps that are not over, for ever; what has succeeded stays."""
    _answer(server.pipelines.cancel(server.pipelines.find(pipeline).id), "is being cancelled.", as_json)


@app.command()
def retry(server: Server, pipeline: PipelineName, as_json: AsJson = False) -> None:
    """Go on from the steps that failed; what has succeeded is not done again."""
    _answer(server.pipelines.retry(server.pipelines.find(pipeline).id), "goes on from what failed.", as_json)


@app.command()
def delete(
    server: Server,
    pipeline: PipelineName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a pipeline that is over, with its jobs and their checkpoints. Models stay."""
    found = server.pipelines.find(pipeline)
    if not yes and not as_json:
        typer.confirm(f"Remove {found.name} ({found.id}), its jobs and their checkpoints?", abort=True, err=True)
    server.pipelines.delete(found.id)
    _answer(found, "is removed; its models stay.", as_json)
