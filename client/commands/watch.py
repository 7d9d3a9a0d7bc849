"""Following one job to its end: a live picture for people, lines for pipes, JSON lines for programs."""

import time

import typer

from client.api import Client
from client.commands.follow import follow, left_running
from client.commands.followed import Followed
from client.commands.options import AsJson, JobOrNewest, Server, job_or_newest
from client.commands.picture import Picture, event_line, numbers
from client.commands.watch_pipeline import watch_pipeline
from client.problems import Ambiguous
from client.records import Event, Job, Pipeline
from client.terminal import escape, out, phase, why

app = typer.Typer()


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


def watch_job(client: Client, job: Job, *, as_json: bool) -> int:
    """Follows `job` until it is over or rests; gives the exit code."""
    followed = Followed(client, job)
    picture = Picture(out)
    return follow(
        followed,
        json_lines=as_json,
        picture=lambda: picture.of(followed),
        told=_Lines(followed).say,
        not_well=lambda: _not_well(followed.job),
    )


class _Lines:
    """Events as they come, and how far it is every few seconds: for logs and pipes."""

    def __init__(self, followed: Followed):
        self._followed = followed
        self._said, self._step = 0.0, -1

    def say(self, events: list[Event]) -> None:
        """Prints what is new."""
        for event in events:
            out.print(event_line(event), soft_wrap=True)
        job = self._followed.job
        step = job.progress.step if job.progress else -1
        if step > self._step and time.monotonic() - self._said > 5.0:
            out.print(f"{job.phase}: {numbers(self._followed)}", soft_wrap=True, markup=False)
            self._said, self._step = time.monotonic(), step


def _not_well(job: Job) -> str:
    out.print(f"[red]✗[/] {escape(job.name)} {phase(job.phase)}  {why(job.reason, job.message)}", soft_wrap=True)
    hints = {"failed": f"rlhf logs {job.id}  or  rlhf retry {job.id}", "paused": f"rlhf resume {job.id}"}
    return hints.get(job.phase, "")
