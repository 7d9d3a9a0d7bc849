"""What many commands take."""

import os
from typing import Annotated

import typer

from client.api import DEFAULT_URL, Client
from client.records import Job
from client.terminal import say


def _client(url: str) -> Client:
    address = url if "://" in url else f"http://{url}"
    if not address.startswith(("http://", "https://")):
        raise typer.BadParameter("write an address such as http://127.0.0.1:8000")
    # A person at a terminal would rather read that nobody answers than wait.
    return Client(address, patience=1.0)


Server = Annotated[
    Client,
    typer.Option(
        "--server",
        metavar="URL",
        envvar="RLHF_SERVER",
        parser=_client,
        default_factory=lambda: DEFAULT_URL,
        show_default=False,
        help=f"The control plane; absent: {DEFAULT_URL}.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: JSON on standard output.")]


def _jobs(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Completion: ids and names of the newest jobs."""
    try:
        given = ctx.params.get("server")
        client = given if isinstance(given, Client) else _client(os.environ.get("RLHF_SERVER", DEFAULT_URL))
        jobs = list(client.jobs.all(limit=50))
    except Exception:  # a shell that completes must not show a traceback
        return []
    named = [(j.name, f"{j.id} {j.phase}") for j in jobs] + [(j.id, f"{j.name} {j.phase}") for j in jobs]
    return [(word, text) for word, text in named if word.startswith(incomplete)]


JobName = Annotated[
    str,
    typer.Argument(metavar="JOB", help="Its id, its name, or the beginning of either.", autocompletion=_jobs),
]
JobOrNewest = Annotated[
    str | None,
    typer.Argument(
        metavar="JOB",
        help="Its id, its name, or the beginning of either; absent: the newest job.",
        autocompletion=_jobs,
        show_default=False,
    ),
]


def job_or_newest(client: Client, name: str | None) -> Job:
    """The job that a person means; said, where it was not named."""
    if name is not None:
        return client.jobs.find(name)
    job = client.jobs.newest()
    say(f"[dim]the newest job: {job.name} ({job.id})[/]")
    return job
