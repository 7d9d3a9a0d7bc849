"""Specs: send one, or check one without a server."""

from typing import Annotated

import typer

from client.commands.follow import left_running
from client.commands.options import AsJson, Server
from client.commands.watch import watch_job
from client.specfiles import BadFile, change, read
from client.terminal import escape, out, print_json, say
from worker.contract.check import parse_spec

app = typer.Typer()
spec = typer.Typer(no_args_is_help=True, help="Job specs, without a server.")
app.add_typer(spec, name="spec")

Source = Annotated[str, typer.Argument(metavar="SPEC", help="A YAML or JSON file, or - for standard input.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change the spec, such as stage.steps=100; may be repeated."),
]


@app.command()
def submit(
    server: Server,
    source: Source,
    *,
    settings: Settings = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check it on the server; make nothing.")] = False,
    key: Annotated[
        str | None, typer.Option(help="An Idempotency-Key: the same key never makes a second job, for 24 h.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send a job spec to the control plane."""
    wanted = change(read(source), settings or [])
    if "steps" in wanted and "stage" not in wanted:
        raise BadFile(f"{source} holds a pipeline; send it with `rlhf pipeline submit`")
    if dry_run:
        checked = server.jobs.dry_run(wanted)
        if as_json:
            print_json(checked)
        else:
            found = "".join(f"\n  {escape(path)}: {escape(i['location'])}" for path, i in checked.inputs.items())
            out.print(f"[green]✓[/] The spec is right, and what it refers to is there.{found}", soft_wrap=True)
        return
    job = server.jobs.create(wanted, key=key)
    if watch:
        if not as_json:
            say(f"[green]✓[/] {escape(job.name)} is job [bold]{job.id}[/]")
        with left_running(job):
            raise typer.Exit(watch_job(server, job, as_json=as_json))
    if as_json:
        print_json(job)
    else:
        out.print(f"[green]✓[/] {escape(job.name)} is job [bold]{job.id}[/]")
        say(f"[dim]rlhf watch {job.id}  shows how it goes[/]")


@spec.command()
def validate(source: Source, settings: Settings = None, as_json: AsJson = False) -> None:
    """Check a spec as the control plane would, but for the files and models it refers to."""
    checked = parse_spec(change(read(source), settings or []))
    if as_json:
        print_json(checked)
    else:
        out.print(f"[green]✓[/] {escape(checked.title)} is right: {checked.stage.type} on {checked.ranks} rank(s).")
