"""The control plane on this machine."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from client.problems import ApiError
from client.terminal import replace_process

app = typer.Typer()


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    data: Annotated[Path, typer.Option(help="The folder that holds all it keeps.")] = Path("rlhf-data"),
    host: Annotated[str, typer.Option(help="Without authentication: an address of this machine alone.")] = "127.0.0.1",
) -> None:
    """Start the control plane here; Ctrl-C stops it, and leaves jobs running."""
    if find_spec("fastapi") is None:
        raise ApiError("The control plane is not installed here: pip install 'rlhf-operator[api,worker]'")
    replace_process(["-m", "api", "--role", "all", "--host", host, "--port", str(port), "--data", str(data)])
