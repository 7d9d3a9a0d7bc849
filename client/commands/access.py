"""Who may come in: projects, keys, who one is, and who changed what."""

from collections.abc import Iterator
from typing import Annotated

import typer

from client.access import Quota
from client.commands.options import AsJson, Server
from client.terminal import age, escape, out, print_json, say, size, table

projects = typer.Typer(no_args_is_help=True, help="Projects, and how much each may use.")
keys = typer.Typer(no_args_is_help=True, help="API keys.")
app = typer.Typer()
ProjectName = Annotated[str, typer.Argument(metavar="PROJECT", help="Its name.")]
Jobs = Annotated[int | None, typer.Option(min=0, help="Active jobs; absent: as many as there is room for.")]
Accelerators = Annotated[int | None, typer.Option(min=0, help="That its active jobs ask for together.")]
Bytes = Annotated[int | None, typer.Option(min=0, help="Of its files and models.")]


@projects.command("create")
def create_project(
    server: Server,
    name: ProjectName,
    namespace: Annotated[str | None, typer.Option(help="On Kubernetes: of its own, for its jobs.")] = None,
    jobs: Jobs = None,
    accelerators: Accelerators = None,
    bytes: Bytes = None,
) -> None:
    """Make a project."""
    made = server.projects.create(name, namespace=namespace, jobs=jobs, accelerators=accelerators, bytes=bytes)
    say(f"[green]✓[/] {escape(made.name)} is there; `rlhf keys create NAME --project {escape(made.name)}` lets in.")


@projects.command("list")
def list_projects(server: Server, as_json: AsJson = False) -> None:
    """Projects, the newest first."""
    found = list(server.projects.all())
    if as_json:
        print_json(found)
        return
    table(
        {"name": "left", "stored": "right", "limits": "left", "age": "right"},
        ((escape(p.name), size(p.stored), ", ".join(_limits(p.quota)) or "none", age(p.created_at)) for p in found),
        "No projects.",
    )


@projects.command("limit")
def limit_project(
    server: Server, name: ProjectName, jobs: Jobs = None, accelerators: Accelerators = None, bytes: Bytes = None
) -> None:
    """Set what a project may use; what is left out is not limited any more."""
    limited = server.projects.limit(name, jobs=jobs, accelerators=accelerators, bytes=bytes)
    say(f"[green]✓[/] {escape(name)}: {', '.join(_limits(limited.quota)) or 'no limits'}")


@projects.command("delete")
def delete_project(server: Server, name: ProjectName) -> None:
    """Remove a project in which nothing is left, and its keys."""
    server.projects.delete(name)
    say(f"[green]✓[/] {escape(name)} is removed.")


@keys.command("create")
def create_key(
    server: Server,
    name: Annotated[str, typer.Argument(metavar="NAME", help="For whom, or for what.")],
    role: Annotated[str, typer.Option(help="viewer reads, editor makes and changes, admin does all.")] = "editor",
    project: Annotated[str | None, typer.Option(help="By its name; absent: your own.")] = None,
    expires_in: Annotated[str | None, typer.Option(help="Such as 30d; absent: never.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown this once."""
    made = server.keys.create(name, role=role, project=project, expires_in=expires_in)
    if as_json:
        print_json(made)
        return
    say(f"[green]✓[/] {made.id}: {made.role} of {escape(made.project)}. The key, which nobody can show you again:")
    out.print(made.key)


@keys.command("list")
def list_keys(server: Server, as_json: AsJson = False) -> None:
    """Keys, the newest first."""
    found = list(server.keys.all())
    if as_json:
        print_json(found)
        return
    table(
        {"id": "left", "name": "left", "role": "left", "project": "left", "state": "left", "used": "right"},
        (
            (
                key.id, escape(key.name), key.role, escape(key.project),
                "revoked" if key.revoked_at else f"until {key.expires_at:%Y-%m-%d}" if key.expires_at else "good",
                f"{age(key.last_used_at)} ago" if key.last_used_at else "never",
            )
            for key in found
        ),
        "No keys.",
    )  # fmt: skip


@keys.command("revoke")
def revoke_key(server: Server, key: Annotated[str, typer.Argument(metavar="KEY", help="Its id.")]) -> None:
    """End a key, at once and for good."""
    server.keys.revoke(key)
    say(f"[green]✓[/] {escape(key)} is good no more.")


@app.command()
def whoami(server: Server, as_json: AsJson = False) -> None:
    """Who you are to the control plane."""
    caller = server.keys.whoami()
    if as_json:
        print_json(caller)
        return
    out.print(f"[bold]{escape(caller.name)}[/], {caller.role} of {escape(caller.project)}")


@app.command()
def audit(
    server: Server,
    target: Annotated[str | None, typer.Argument(metavar="ID", help="What was done to this; absent: to all.")] = None,
    project: Annotated[str | None, typer.Option(help="In this project.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Who changed what, the newest first."""
    found = list(server.projects.changes(limit=limit, target=target, project=project))
    if as_json:
        print_json(found)
        return
    table(
        {"when": "right", "who": "left", "did": "left", "to": "left", "in": "left"},
        ((f"{age(c.at)} ago", escape(c.who), c.action, escape(c.target), escape(c.project or "-")) for c in found),
        "Nobody changed anything.",
    )


def _limits(quota: Quota) -> Iterator[str]:
    if quota.jobs is not None:
        yield f"{quota.jobs} active jobs"
    if quota.accelerators is not None:
        yield f"{quota.accelerators} accelerators"
    if quota.bytes is not None:
        yield f"{size(quota.bytes)} stored"
