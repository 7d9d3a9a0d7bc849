"""`rlhf explain`: why a job is where it is, and what to do about it."""

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from client.commands.options import AsJson, JobOrNewest, Server, job_or_newest
from client.records import Explanation, Job
from client.terminal import escape, out, phase, plain, print_json

app = typer.Typer()
_TYPED = r"`[^`]+`"
_QUOTED = r"“[^”]*”"


@app.command()
def explain(server: Server, job: JobOrNewest = None, as_json: AsJson = False) -> None:
    """Why a job does not run, or failed, or that all is well; and what to do."""
    found = job_or_newest(server, job)
    explanation = server.jobs.explain(found.id)
    if as_json:
        print_json(explanation)
    else:
        out.print(picture(found, explanation))


def picture(job: Job, explanation: Explanation) -> Group:
    """The explanation as it is shown: the sentence, the facts, and what to do."""
    reason = f"  {escape(explanation.reason)}" if explanation.reason else ""
    title = Text.from_markup(f"[bold]{escape(job.name)}[/] [dim]{job.id}[/]  {phase(explanation.phase)}{reason}")
    rows: list[RenderableType] = [title, Text(plain(explanation.summary), style="bold")]
    for heading, sentences, mark in (("Because", explanation.because, "·"), ("What to do", explanation.todo, "→")):
        if sentences:
            rows += [Text(""), Text(heading, style="dim"), _list(sentences, mark)]
    return Group(*rows)


def _list(sentences: list[str], mark: str) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for each in sentences:
        text = Text(plain(each))
        text.highlight_regex(_QUOTED, "yellow")
        # Last, so that a command that quotes somebody still looks like one.
        text.highlight_regex(_TYPED, "bold cyan")
        grid.add_row(mark, text)
    return grid
