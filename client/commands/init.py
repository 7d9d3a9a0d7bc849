"""A spec to begin with."""

from pathlib import Path
from typing import Annotated

import typer

from client.specfiles import BadFile
from client.terminal import escape, say
from worker.contract.spec import STAGES
from worker.contract.template import template

app = typer.Typer()


@app.command()
def init(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help=f"One of {', '.join(STAGES)}.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where to; absent: standard output. Never overwritten.")
    ] = None,
) -> None:
    """Write a spec to begin with: what a stage needs, and as comments all that may be said of it."""
    if stage not in STAGES:
        raise BadFile(f"there is no stage {stage}; write one of {', '.join(STAGES)}")
    if file is None:
        typer.echo(template(stage), nl=False)
        return
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(template(stage))
    except FileExistsError:
        raise BadFile(f"{file} is there already; give another name") from None
    say(f"[green]✓[/] {escape(str(file))} is a spec for {stage}. Say in it which model and which rows.")
    say(f"[dim]rlhf spec validate {escape(str(file))}  checks it[/]")
