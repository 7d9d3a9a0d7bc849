"""`rlhf`: the command line. Each command is in client/commands; this puts them together."""

import os
from typing import Annotated

import typer

from client.commands import (
    access,
    confirm_dead,
    estimate,
    explain,
    files,
    init,
    jobs,
    logs,
    manifest,
    metrics,
    models,
    pipelines,
    samples,
    serve,
    submit,
    watch,
)
from client.problems import ApiError
from client.terminal import fail
from worker.contract.check import InvalidSpec
from worker.contract.manifest import Damaged

app = typer.Typer(
    name="rlhf",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train models by posting a spec. `rlhf serve` starts a control plane here; all else talks to one.",
)
for part in (serve, init, submit, estimate, manifest, watch, jobs, explain, confirm_dead, logs, metrics, samples):
    app.add_typer(part.app)
app.add_typer(files.app, name="files")
app.add_typer(models.app, name="models")
app.add_typer(pipelines.app, name="pipeline")
app.add_typer(models.talk)
app.add_typer(access.app)
app.add_typer(access.projects, name="projects")
app.add_typer(access.keys, name="keys")


@app.callback()
def rlhf(
    server: Annotated[
        str | None, typer.Option("--server", metavar="URL", help="The control plane; also RLHF_SERVER.")
    ] = None,
) -> None:
    """Commands read the server's address from RLHF_SERVER, so that it may stand before the command too."""
    if server is not None:
        os.environ["RLHF_SERVER"] = server


def main() -> None:
    """Runs a command; what goes wrong is said in sentences, with an exit code for scripts."""
    try:
        app()
    except (ApiError, InvalidSpec, Damaged, OSError) as error:
        fail(error)


if __name__ == "__main__":
    main()
