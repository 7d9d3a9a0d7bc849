"""Following one job to its end: a live picture for people, lines for pipes, JSON lines for programs."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.live import Live

from client.api import Client
from client.commands.followed import Followed
from client.commands.options import AsJson, JobOrNewest, Server, job_or_newest
from client.commands.picture import Picture, event_line, numbers
from client.commands.watch_pipeline import watch_pipeline
from client.problems import Ambiguous, Unreachable
from client.records import Job, Pipeline
from client.terminal import (
    INTERRUPTED,
    REFUSED,
    UNREACHABLE,
    age,
    as_json,
    err,
    escape,
    out,
    phase,
    say,
    why,
)

app = typer.Typer()

# Seconds between two looks.
EVERY = 0.5


@app.command()
def watch(server: Server, job: JobOrNewest = None, json_lines: AsJson = False) -> None:
    """Follow a job, or a pipeline, to its end. Exit code 0 only if it succeeds; Ctrl-C leaves it running."""
    found = _found(server, job)
    with left_running(found):
        if isinstance(found, Pipeline):
            raise typer.Exit(watch_pipeline(server, found, as_json=json_lines))
        raise typer.Exit(watch_job(server, found, as_json=json_lines))


def _found(server: Client, name: str | None) -> Job | Pipeline:
    """What a person means: of a job and a pipeline whose names only begin so, the one that there is."""
    if name is None or name.startswith("job-"):
        return job_or_newest(server, name)
    if name.startswith("pipe-") or any(server.pipelines.all(name=name, limit=1)):
        return server.pipelines.find(name)
    try:
        return server.jobs.find(name)
    except Ambiguous as error:
        try:
            return server.pipelines.find(name)
        except Ambiguous:
            raise error from None


@contextmanager
def left_running(job: Job | Pipeline) -> Iterator[None]:
    """Ctrl-C ends the watching, not the work; that is said."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"[dim]It goes on without you; rlhf watch {job.id} looks again.[/]")
        raise typer.Exit(INTERRUPTED) from None


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
            out.print(f"{followed.job.phase}: {numbers(followed)}", soft_wrap=True, markup=False)
            last_said, last_step = time.monotonic(), step
        if followed.over:
            return
        time.sleep(EVERY)


def _picture(followed: Followed) -> None:
    picture = Picture(out)
    with Live(console=out, refresh_per_second=8, transient=True) as live:
        while True:
            followed.look()
            live.update(picture.of(followed))
            if followed.over:
                break
            time.sleep(EVERY)
    out.print(picture.of(followed))


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
