"""Jobs: what there is, and what is wanted of it."""

from typing import Annotated

import typer

from client.commands.options import AsJson, JobName, JobOrNewest, Server, job_or_newest
from client.records import Job
from client.specfiles import change
from client.terminal import (
    age,
    clock,
    duration,
    escape,
    out,
    pairs,
    phase,
    print_json,
    progress_of,
    say,
    size,
    table,
    why,
)

app = typer.Typer()


@app.command("list")
def list_jobs(
    server: Server,
    *,
    phases: Annotated[
        list[str] | None, typer.Option("--phase", help="Only jobs in this phase; may be repeated.")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Only jobs of this stage.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs of this name.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only jobs with this metadata; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many; all pages are read for it.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Jobs, newest first."""
    wanted = dict(entry.partition("=")[::2] for entry in metadata or [])
    found = list(server.jobs.all(phase=phases, stage=stage, name=name, metadata=wanted, limit=limit + 1))
    jobs = found[:limit]
    if as_json:
        print_json(jobs)
        return
    table(
        {
            "id": "left",
            "name": "left",
            "stage": "left",
            "phase": "left",
            "step": "right",
            "attempt": "right",
            "age": "right",
            "reason": "cut",
        },
        (
            (
                j.id,
                escape(j.name),
                j.stage,
                phase(j.phase),
                progress_of(j),
                str(j.attempt or ""),
                age(j.created_at),
                f"[dim]{escape(j.reason or '')}[/]" * (j.phase != "succeeded"),
            )
            for j in jobs
        ),
        "No jobs. `rlhf submit examples/tiny.json --watch` makes one.",
    )
    if len(found) > limit:
        say(f"[dim]There are more: --limit {limit * 2}[/]")


@app.command()
def show(server: Server, job: JobOrNewest = None, as_json: AsJson = False) -> None:
    """One job: where it is and why, and its last events."""
    found = job_or_newest(server, job)
    if as_json:
        print_json(found)
        return
    rate = found.progress.tokens_per_second if found.progress else None
    pairs(
        [
            ("job", f"[bold]{escape(found.name)}[/]  {found.id}"),
            ("stage", found.stage),
            ("phase", f"{phase(found.phase)}  {escape(found.activity or '') if not found.final else ''}".rstrip()),
            ("reason", why(found.reason, found.message)),
            ("wanted", found.desired if found.desired != "run" and not found.final else ""),
            ("progress", progress_of(found) + (f"  {rate:.0f} tokens/s" if rate and not found.final else "")),
            ("attempt", str(found.attempt or "")),
            ("priority", str(found.priority or "")),
            ("metadata", escape("  ".join(f"{k}={v}" for k, v in found.metadata.items()))),
            ("made", f"{age(found.created_at)} ago"),
            ("ran", _ran(found)),
            ("cloned from", found.cloned_from or ""),
        ]
    )
    for event in server.jobs.events(found.id)[-5:]:
        out.print(f"[dim]{clock(event.at)}[/]  {escape(event.type)}  {escape(event.message)}")


def _ran(job: Job) -> str:
    if job.started_at is None:
        return ""
    return duration((job.finished_at - job.started_at).total_seconds()) if job.finished_at else age(job.started_at)


@app.command()
def attempts(server: Server, job: JobOrNewest = None, as_json: AsJson = False) -> None:
    """A job's tries, the first first."""
    found = server.jobs.attempts(job_or_newest(server, job).id)
    if as_json:
        print_json(found)
        return
    table(
        {
            "attempt": "right",
            "began": "left",
            "took": "right",
            "step": "right",
            "from step": "right",
            "exit": "right",
            "outcome": "wrap",
        },
        (
            (
                str(a.number),
                clock(a.created_at),
                age(a.created_at, a.ended_at),
                progress_of(a),
                "" if a.resumed_from is None else str(a.resumed_from),
                "" if a.exit_code is None else str(a.exit_code),
                # A traceback may follow; `--json` and `rlhf logs` have it.
                why(a.reason, a.message.strip().partition("\n")[0]) if a.ended_at else "[blue]goes on[/]",
            )
            for a in found
        ),
        "It has not been tried yet.",
    )


@app.command()
def checkpoints(server: Server, job: JobOrNewest = None, as_json: AsJson = False) -> None:
    """A job's checkpoints."""
    found = server.jobs.checkpoints(job_or_newest(server, job).id)
    if as_json:
        print_json(found)
        return
    table(
        {"step": "right", "attempt": "right", "size": "right", "made": "left", "hash": "left", "": "left"},
        (
            (
                str(c.step),
                str(c.attempt),
                size(c.bytes),
                clock(c.at),
                c.sha256[:12],
                "[dim]pruned[/]" * bool(c.pruned_at),
            )
            for c in found
        ),
        "It has no checkpoint yet.",
    )


def _answer(job: Job, sentence: str, as_json: bool) -> None:
    if as_json:
        print_json(job)
    else:
        out.print(f"[green]✓[/] {escape(job.name)} ({job.id}) {sentence}")


@app.command()
def pause(server: Server, job: JobName, as_json: AsJson = False) -> None:
    """Save and stop a job; `resume` goes on from there."""
    _answer(server.jobs.pause(server.jobs.find(job).id), "saves and pauses.", as_json)


@app.command()
def resume(server: Server, job: JobName, as_json: AsJson = False) -> None:
    """Go on with a paused job, from its newest checkpoint."""
    _answer(server.jobs.resume(server.jobs.find(job).id), "goes on.", as_json)


@app.command()
def cancel(server: Server, job: JobName, as_json: AsJson = False) -> None:
    """Stop a job for ever, saving nothing."""
    _answer(server.jobs.cancel(server.jobs.find(job).id), "is being cancelled.", as_json)


@app.command()
def retry(server: Server, job: JobName, as_json: AsJson = False) -> None:
    """Send a failed job back to the queue; it goes on from its newest checkpoint."""
    _answer(server.jobs.retry(server.jobs.find(job).id), "is queued again.", as_json)


@app.command()
def clone(
    server: Server,
    job: JobName,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Change the spec; no value takes a field out; may be repeated."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a new job from a job's spec."""
    original = server.jobs.find(job)
    made = server.jobs.clone(original.id, change({}, settings or []))
    _answer(made, f"is a clone of {original.id}.", as_json)


@app.command()
def delete(
    server: Server,
    job: JobName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a job that is over, with its checkpoints. Its models stay."""
    found = server.jobs.find(job)
    if not yes and not as_json:
        typer.confirm(f"Remove {found.name} ({found.id}) and its checkpoints?", abort=True, err=True)
    server.jobs.delete(found.id)
    _answer(found, "is removed; its models stay.", as_json)
