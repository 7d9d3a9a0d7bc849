"""Following a pipeline to its end: all steps in one live picture, lines for pipes, or JSON lines for programs."""

import time

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from client.api import Client
from client.commands.follow import follow
from client.commands.followed import headline
from client.commands.followed_pipeline import FollowedPipeline, Happened
from client.commands.picture import event_line, sparkline
from client.records import Pipeline, Step
from client.terminal import duration, escape, out, phase, why

_BAR = 20
_CURVE = 16


def watch_pipeline(client: Client, pipeline: Pipeline, *, as_json: bool) -> int:
    """Follows `pipeline` until all steps are over, or rest; gives the exit code."""
    followed = FollowedPipeline(client, pipeline)
    return follow(
        followed,
        json_lines=as_json,
        picture=lambda: picture(followed),
        told=_say,
        not_well=lambda: _not_well(followed.pipeline),
    )


def _say(news: list[Happened]) -> None:
    for happened in news:
        out.print(_event(happened), soft_wrap=True)


def picture(followed: FollowedPipeline) -> Group:
    """The pipeline as it is now: a line a step, then the newest events."""
    pipeline = followed.pipeline
    title = f"[bold]{escape(pipeline.name)}[/] [dim]{pipeline.id}[/] {phase(pipeline.phase)}"
    grid = Table.grid(padding=(0, 2), expand=True)
    for _ in range(4):
        grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for step in pipeline.steps:
        grid.add_row(*_row(step, followed))
    rows: list[RenderableType] = [Rule(title, align="left", style="dim"), grid]
    if followed.silent_since is not None:
        silence = time.monotonic() - followed.silent_since
        rows.append(Text.from_markup(f"[yellow]The control plane does not answer (for {silence:.0f} s).[/]"))
    lines = [Text.from_markup(_event(happened), overflow="ellipsis") for happened in followed.events]
    for line in lines:
        line.no_wrap = True
    return Group(*rows, *([Text("")] if lines else []), *lines)


def _row(step: Step, followed: FollowedPipeline) -> list[RenderableType]:
    made, steps = (step.progress.step, step.progress.steps) if step.progress else (0, None)
    done = step.phase == "succeeded"
    bar: RenderableType = ""
    if step.started_at is not None:
        bar = ProgressBar(
            total=float(steps or 1),
            completed=float(steps or 1) if done else float(made),
            width=_BAR,
            complete_style="blue",
            finished_style="green",
        )
    count = f"{made}/{steps}" if steps else str(made or "")
    return [f"[bold]{escape(step.step)}[/]", phase(step.phase), bar, count, _said(step, followed)]


def _said(step: Step, followed: FollowedPipeline) -> str:
    """What is worth saying of a step: why it is where it is, its numbers, what it handed over."""
    parts = []
    if step.phase not in ("running", "succeeded") and (said := why(step.reason, step.message)):
        parts.append(f"[dim]{said}[/]")
    if points := followed.curve(step):
        name = headline(step.stage).rpartition("/")[2]
        parts.append(f"{name} {points[-1].value:.3f} {sparkline([p.value for p in points], _CURVE)}")
    if step.phase == "running" and step.activity:
        parts.append(f"[blue]{escape(step.activity)}[/]")
    parts += [f"[green]{escape(m.name)}@{m.version}[/]" for m in step.models if m.kind == "model"]
    if step.started_at is not None and step.finished_at is not None:
        parts.append(f"[dim]{duration((step.finished_at - step.started_at).total_seconds())}[/]")
    return "  ".join(parts)


def _event(happened: Happened) -> str:
    return f"[bold]{escape(happened.step)}[/]  {event_line(happened.event)}"


def _not_well(pipeline: Pipeline) -> str:
    for step in pipeline.steps:
        if step.phase != "succeeded":
            said = why(step.reason, step.message)
            out.print(f"[red]✗[/] {escape(step.step)} {phase(step.phase)}  {said}", soft_wrap=True)
    hints = {"failed": "retry", "paused": "resume"}
    return f"rlhf pipeline {hints[pipeline.phase]} {pipeline.id}" if pipeline.phase in hints else ""
