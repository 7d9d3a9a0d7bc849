"""Following one job to its end: a live picture for people, lines for pipes, JSON lines for programs."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.rule import Rule
from rich.text import Text

from client.api import Client
from client.commands.options import AsJson, JobOrNewest, Server, job_or_newest
from client.problems import Problem, Unreachable
from client.records import Event, Job, Point
from client.terminal import (
    INTERRUPTED,
    LEVEL_STYLES,
    REFUSED,
    UNREACHABLE,
    age,
    as_json,
    clock,
    err,
    out,
    phase,
    say,
    why,
)

app = typer.Typer()

# Seconds between two looks, and for how long nobody may answer.
EVERY = 0.5
PATIENCE = 600.0
_EVENTS_SHOWN = 6
_BLOCKS = "▁▂▃▄▅▆▇█"


@app.command()
def watch(server: Server, job: JobOrNewest = None, json_lines: AsJson = False) -> None:
    """Follow a job to its end. Exit code 0 only if it succeeds; Ctrl-C leaves it running."""
    found = job_or_newest(server, job)
    with left_running(found):
        raise typer.Exit(watch_job(server, found, as_json=json_lines))


@contextmanager
def left_running(job: Job) -> Iterator[None]:
    """Ctrl-C ends the watching, not the job; that is said."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"[dim]It goes on without you; rlhf watch {job.id} looks again.[/]")
        raise typer.Exit(INTERRUPTED) from None


class Followed:
    """A job as it is seen while it is followed: what it is now, its newest loss, its last events."""

    def __init__(self, client: Client, job: Job):
        self.job = job
        self.events: deque[Event] = deque(maxlen=_EVENTS_SHOWN)
        self.losses: deque[Point] = deque(maxlen=400)
        self.silent_since: float | None = None
        self._client = client
        self._last_event = 0
        self._last_point: int | None = None

    def look(self) -> list[Event]:
        """Asks for what is new, and gives the new events. A server that is away for a while is waited for.

        Raises Unreachable once it has been away for `PATIENCE` seconds, Problem if the job is gone.
        """
        try:
            # The job first: whatever it did before this answer is then in the events that are asked for next.
            job = self._client.jobs.get(self.job.id)
            events = self._client.jobs.events(job.id, after=self._last_event)
            points = self._client.jobs.metrics(job.id, name="train/loss", after=self._last_point)
        except (Unreachable, Problem) as error:
            if isinstance(error, Problem) and error.status < 500:
                raise
            now = time.monotonic()
            self.silent_since = self.silent_since or now
            if now - self.silent_since > PATIENCE:
                raise
            return []
        self.silent_since = None
        self.job = job
        if events:
            self._last_event = events[-1].number
            self.events.extend(events)
        if points:
            self._last_point = points[-1].id
            self.losses.extend(points)
        return events

    @property
    def over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.silent_since is None and (self.job.final or self.job.resting)


def watch_job(client: Client, job: Job, *, as_json: bool) -> int:
    """Follows `job` until it is over or rests; gives the exit code."""
    followed = Followed(client, job)
    try:
        if as_json:
            _json_lines(followed)
        elif out.is_terminal:
            _picture(followed)
        else:
            _lines(followed)
    except Unreachable as error:
        say(f"[red]✗[/] {escape(str(error))} The job may still be running; rlhf watch {job.id} looks again.")
        return UNREACHABLE
    if not as_json:
        _outcome(followed.job)
    return 0 if followed.job.phase == "succeeded" else REFUSED


def _json_lines(followed: Followed) -> None:
    """One line each time that the job has changed; the last is its end."""
    before = ""
    while True:
        followed.look()
        now = as_json(followed.job)
        if now != before and followed.silent_since is None:
            print(now, flush=True)
            before = now
        if followed.over:
            return
        time.sleep(EVERY)


def _lines(followed: Followed) -> None:
    """Events as they come, and how far it is every few seconds: for logs and pipes."""
    last_said, last_step = 0.0, -1
    while True:
        for event in followed.look():
            out.print(event_line(event), soft_wrap=True)
        step = followed.job.progress.step if followed.job.progress else -1
        if step > last_step and time.monotonic() - last_said > 5.0:
            out.print(f"{followed.job.phase}: {_numbers(followed)}", soft_wrap=True, markup=False)
            last_said, last_step = time.monotonic(), step
        if followed.over:
            return
        time.sleep(EVERY)


def _picture(followed: Followed) -> None:
    bar = Progress(
        TextColumn("{task.fields[phase]}"),
        BarColumn(bar_width=None, complete_style="blue", finished_style="green"),
        TextColumn("{task.fields[steps]}"),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=out,
        expand=True,
        speed_estimate_period=120.0,
    )
    task = bar.add_task("", total=None, phase="", steps="")
    began_at = -1
    with Live(console=out, refresh_per_second=8, transient=True) as live:
        while True:
            followed.look()
            job = followed.job
            step = job.progress.step if job.progress else 0
            if job.attempt != began_at or step < bar.tasks[0].completed:
                # A new attempt goes on from a checkpoint: its speed is measured afresh.
                bar.reset(task, total=None, completed=step)
                began_at = job.attempt
            bar.update(
                task,
                total=job.progress.steps if job.progress else None,
                completed=step,
                phase=phase(job.phase),
                steps=_steps(job),
            )
            live.update(picture(followed, bar))
            if followed.over:
                break
            time.sleep(EVERY)
    out.print(picture(followed, bar))


def picture(followed: Followed, bar: RenderableType) -> Group:
    """What `rlhf watch` shows: name, bar, numbers, and the last events."""
    job = followed.job
    title = f"[bold]{escape(job.name)}[/] [dim]{job.id} · {job.stage} · attempt {job.attempt}[/]"
    rows: list[RenderableType] = [Rule(title, align="left", style="dim"), bar, Text.from_markup(_state(followed))]
    if followed.events:
        rows.append(Text(""))
        rows += [Text.from_markup(event_line(event), overflow="ellipsis") for event in followed.events]
    for row in rows:
        if isinstance(row, Text):
            row.no_wrap = True
    return Group(*rows)


def _state(followed: Followed) -> str:
    if followed.silent_since is not None:
        return (
            f"[yellow]The control plane does not answer (for {time.monotonic() - followed.silent_since:.0f} s). "
            "The job goes on without it.[/]"
        )
    job = followed.job
    doing = f"[blue]{job.activity}[/]" if job.activity and job.phase == "running" else ""
    reason = f"[dim]{why(job.reason, job.message)}[/]" if job.reason and job.phase != "succeeded" else ""
    return "   ".join(part for part in (doing, _numbers(followed, graph=True), reason) if part) or "[dim]waiting[/]"


def _steps(job: Job) -> str:
    if job.progress is None:
        return ""
    return f"{job.progress.step}/{job.progress.steps}" if job.progress.steps else str(job.progress.step)


def _numbers(followed: Followed, graph: bool = False) -> str:
    """Loss, speed and tokens, as far as they are known."""
    job = followed.job
    parts = [] if graph else [f"step {_steps(job)}"]
    if followed.losses:
        line = f" {sparkline([p.value for p in followed.losses], 24)}" if graph else ""
        parts.append(f"loss {followed.losses[-1].value:.3f}{line}")
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
    return f"[dim]{clock(event.at)}[/]  [{style}]{escape(event.type)}[/]  {message}"


def _outcome(job: Job) -> None:
    took = age(job.created_at, job.finished_at) if job.finished_at else ""
    if job.phase == "succeeded":
        out.print(f"[green]✓[/] {escape(job.name)} succeeded{f' after {took}' if took else ''}.")
        return
    out.print(f"[red]✗[/] {escape(job.name)} {phase(job.phase)}  {why(job.reason, job.message)}", soft_wrap=True)
    hints = {"failed": f"rlhf logs {job.id}  or  rlhf retry {job.id}", "paused": f"rlhf resume {job.id}"}
    if job.phase in hints:
        err.print(f"[dim]{hints[job.phase]}[/]")
    sys.stdout.flush()
