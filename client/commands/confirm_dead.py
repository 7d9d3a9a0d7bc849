"""`rlhf confirm-dead`: an admin's word on an attempt that nobody can see any more."""

from typing import Annotated

import typer

from client.commands.options import AsJson, JobName, Server
from client.problems import ApiError
from client.terminal import escape, out, print_json

app = typer.Typer()
_STAKE = """\
Attempt {attempt} of {name} ({id}) is about to be declared dead, and the next attempt may then start at once.
If a process of it still runs, two attempts run at the same time. The control plane refuses the reports of the old one,
which ends as soon as it is told so, and neither writes where the other does; but until then it holds its GPUs and works
for nothing.
Say yes only if the machine is off, or you have looked: """


@app.command("confirm-dead")
def confirm_dead(
    server: Server,
    job: JobName,
    attempt: Annotated[int | None, typer.Option(min=1, help="This attempt; absent: the current one.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Declare an attempt dead whose node does not answer, so that the next one may start. For admins."""
    found = server.jobs.find(job)
    number = attempt if attempt is not None else found.attempt
    if number == 0:
        raise ApiError(f"{found.name} ({found.id}) has no attempt yet.")
    if not yes:
        stake = _STAKE.format(attempt=number, name=found.name, id=found.id)
        typer.confirm(f"{stake}is nothing of it running?", abort=True, err=True)
    confirmed = server.jobs.confirm_dead(found.id, number)
    if as_json:
        print_json(confirmed)
    else:
        out.print(f"[green]✓[/] {escape(found.name)} ({found.id}): attempt {number} is taken for dead.", soft_wrap=True)
