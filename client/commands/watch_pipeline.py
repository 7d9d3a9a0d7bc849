"""Following a pipeline to its end: all steps in one live picture, lines for pipes, or JSON lines for programs."""

import sys
import time

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from client.api import Client
from client.commands.followed_pipeline import FollowedPipeline, Happened, headline
from client.commands.picture import event_line, sparkline
from client.problems import Unreachable
from client.records import Pipeline, Step
from client.terminal import REFUSED, UNREACHABLE, age, as_json, duration, err, escape, out, phase, say, why

# Seconds between two looks.
EVERY = 0.5
_BAR = 20
_CURVE = 16


def watch_pipeline(client: Client, pipeline: Pipeline, *, as_json: bool) -> int:
    """Follows `pipeline` until all steps are over, or rest; gives the exit code."""
    followed = FollowedPipeline(client, pipeline)
    try:
        if as_json:
            _json_lines(followed)
        elif out.is_terminal:
            _live(followed)
        else:
            _lines(followed)
    except Unreachable as error:
        say(f"[red]✗[/] {escape(str(error))} It may still be running; rlhf watch {pipeline.id} looks again.")
        return UNREACHABLE
    if not as_json:
        _outcome(followed.pipeline)
    return 0 if followed.pipeline.phase == "succeeded" else REFUSED


def _json_lines(followed: FollowedPipeline) -> None:
    """One line each time that the pipeline has changed; the last is its end."""
    before = ""
    while True:
        followed.look()
        now = as_json(followed.pipeline)
        if now != before and followed.silent_since is None:
            print(now, flush=True)
            before = now
        if followed.over:
            return
        time.sleep(EVERY)


def _lines(followed: FollowedPipeline) -> None:
    """Events of all steps as they come: for logs and pipes."""
    while True:
        for happened in followed.look():
            out.print(_event(happened), soft_wrap=True)
        if followed.over:
            return
        time.sleep(EVERY)


def _live(followed: FollowedPipeline) -> None:
    with Live(console=out, refresh_per_second=8, transient=True) as live:
        while True:
            followed.look()
            live.update(picture(followed))
            if followed.over:
                break
            time.sleep(EVERY)
    out.print(picture(followed))


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
    points = followed.curves.get(step.step)
    if points:
        name = headline(step).rpartition("/")[2]
        parts.append(f"{name} {points[-1].value:.3f} {sparkline([p.value for p in points], _CURVE)}")
    if step.phase == "running" and step.activity:
        parts.append(f"[blue]{escape(step.activity)}[/]")
    parts += [f"[green]{escape(m.name)}@{m.version}[/]" for m in step.models if m.kind == "model"]
    if step.started_at is not None and step.finished_at is not None:
        parts.append(f"[dim]{duration((step.finished_at - step.started_at).total_seconds())}[/]")
    return "  ".join(parts)


def _event(happened: Happened) -> str:
    return f"[bold]{escape(happened.step)}[/]  {event_line(happened.event)}"


def _outcome(pipeline: Pipeline) -> None:
    if pipeline.phase == "succeeded":
        took = age(pipeline.created_at, pipeline.finished_at) if pipeline.finished_at else ""
        out.print(f"[green]✓[/] {escape(pipeline.name)} succeeded{f' after {took}' if took else ''}.")
        return
    for step in pipeline.steps:
        if step.phase != "succeeded":
            said = why(step.reason, step.message)
            out.print(f"[red]✗[/] {escape(step.step)} {phase(step.phase)}  {said}", soft_wrap=True)
    hints = {"failed": "retry", "paused": "resume"}
    if pipeline.phase in hints:
        err.print(f"[dim]rlhf pipeline {hints[pipeline.phase]} {pipeline.id}[/]")
    sys.stdout.flush()
