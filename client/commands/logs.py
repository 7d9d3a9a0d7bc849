"""What a job wrote: its ranks' logs, and its events."""

import sys
from typing import Annotated

import typer

from client.commands.options import AsJson, JobOrNewest, Server, job_or_newest
from client.commands.picture import event_line
from client.records import LogLine
from client.terminal import as_json, escape, out, plain, print_json, say

app = typer.Typer()
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")]


@app.command()
def logs(
    server: Server,
    job: JobOrNewest = None,
    *,
    follow: Follow = False,
    rank: Annotated[int | None, typer.Option(min=0, help="Only this rank.")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="This attempt; absent: the newest.")] = None,
    tail: Annotated[int | None, typer.Option("--tail", "-n", min=0, help="Only the last lines of each rank.")] = None,
    json_lines: AsJson = False,
) -> None:
    """A job's log, by rank."""
    found = job_or_newest(server, job)
    lines = (
        server.jobs.follow_logs(found.id, rank=rank, attempt=attempt)
        if follow
        else iter(server.jobs.logs(found.id, rank=rank, attempt=attempt, tail=tail))
    )
    several = found.ranks > 1 and rank is None
    none = True
    for line in lines:
        none = False
        if json_lines:
            print(as_json(line), flush=True)
        else:
            _show(line, several)
    if none and not json_lines:
        say("[dim]Nothing has been written yet.[/]")


def _show(line: LogLine, several: bool) -> None:
    # A log is printed as it is: no markup, no wrapping, no colours of ours. Only a terminal must not obey it.
    terminal = sys.stdout.isatty()
    prefix = f"[{line.rank}] " if several else ""
    for text in line.text.splitlines() or [""]:
        print(prefix + (plain(text) if terminal else text), flush=True)


@app.command()
def events(server: Server, job: JobOrNewest = None, follow: Follow = False, json_lines: AsJson = False) -> None:
    """What happened to a job."""
    found = job_or_newest(server, job)
    if follow:
        for event in server.jobs.follow_events(found.id):
            if json_lines:
                print(as_json(event), flush=True)
            else:
                out.print(event_line(event), soft_wrap=True)
        return
    happened = server.jobs.events(found.id)
    if json_lines:
        print_json(happened)
        return
    for event in happened:
        step = "" if event.step is None else f"  [dim]step {event.step}[/]"
        out.print(event_line(event) + step + f"  [dim]{escape(event.source)}[/]", soft_wrap=True)
