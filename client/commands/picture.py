"""What `rlhf watch` draws: a bar, the loss as it falls, and the last events."""

import time
from itertools import pairwise

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.rule import Rule
from rich.text import Text

from client.commands.followed import Followed, headline
from client.records import Event
from client.terminal import LEVEL_STYLES, clock, escape, phase, progress_of, why

_BLOCKS = "▁▂▃▄▅▆▇█"


class Picture:
    """Draws a followed job, and measures its speed from one drawing to the next."""

    def __init__(self, console: Console):
        self._bar = Progress(
            TextColumn("{task.fields[phase]}"),
            BarColumn(bar_width=None, complete_style="blue", finished_style="green"),
            TextColumn("{task.fields[steps]}"),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            expand=True,
            speed_estimate_period=120.0,
        )
        self._task = self._bar.add_task("", total=None, phase="", steps="")
        self._attempt = -1

    def of(self, followed: Followed) -> Group:
        """The picture as it is now."""
        job = followed.job
        step = job.progress.step if job.progress else 0
        if job.attempt != self._attempt or step < self._bar.tasks[0].completed:
            # A new attempt goes on from a checkpoint: its speed is measured afresh.
            self._bar.reset(self._task, total=None, completed=step)
            self._attempt = job.attempt
        self._bar.update(
            self._task,
            total=job.progress.steps if job.progress else None,
            completed=step,
            phase=phase(job.phase),
            steps=progress_of(job),
        )
        title = f"[bold]{escape(job.name)}[/] [dim]{job.id} · {job.stage} · attempt {job.attempt}[/]"
        lines = [Text.from_markup(_state(followed)), *([Text("")] if followed.events else [])]
        lines += [Text.from_markup(event_line(event), overflow="ellipsis") for event in followed.events]
        for line in lines:
            line.no_wrap = True
        rows: list[RenderableType] = [Rule(title, align="left", style="dim"), self._bar, *lines]
        return Group(*rows)


def _state(followed: Followed) -> str:
    if followed.silent_since is not None:
        return (
            f"[yellow]The control plane does not answer (for {time.monotonic() - followed.silent_since:.0f} s). "
            "The job goes on without it.[/]"
        )
    job = followed.job
    doing = f"[blue]{escape(job.activity)}   [/]" if job.activity and job.phase == "running" else ""
    reason = f"[dim]{why(job.reason, job.message)}[/]" if job.reason and job.phase != "succeeded" else ""
    said = "   ".join(part for part in (numbers(followed, graph=True), reason) if part)
    return (doing + said) or "[dim]waiting[/]"


def numbers(followed: Followed, graph: bool = False) -> str:
    """What tells most (mostly the loss), speed and tokens, as far as they are known."""
    job = followed.job
    parts = [] if graph else [f"step {progress_of(job)}"]
    if points := followed.curve:
        line = f" {sparkline([p.value for p in points], 24)}" if graph else ""
        parts.append(f"{headline(job.stage).rpartition('/')[2]} {points[-1].value:.3f}{line}")
    if job.progress is not None and job.progress.tokens_per_second and not job.final:
        parts.append(f"{job.progress.tokens_per_second:,.0f} tokens/s")
    if job.progress is not None and job.progress.tokens:
        parts.append(f"{job.progress.tokens:,} tokens")
    return "   ".join(parts)


def sparkline(values: list[float], width: int) -> str:
    """Values as blocks of eight heights, each the mean of an equal share of them."""
    count = min(width, len(values))
    if count < 2:
        return ""
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)


def event_line(event: Event) -> str:
    """One event, as markup."""
    style = LEVEL_STYLES[event.level] or "default"
    message = escape(" ".join(event.message.split()))
    return f"[dim]{clock(event.at)}  [/][{style}]{escape(event.type)}  [/]{message}"
