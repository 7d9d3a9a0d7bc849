"""Models that jobs handed over: list, show, download, and talk to one."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.tree import Tree

from client.api import Client
from client.commands.options import AsJson, Server
from client.problems import ApiError
from client.records import Model
from client.terminal import age, err, escape, out, pairs, print_json, replace_process, say, size, table
from worker.contract import manifest

app = typer.Typer(no_args_is_help=True, help="Models that jobs handed over.")
talk = typer.Typer()
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="NAME, NAME@VERSION, or an id.")]
Kind = Annotated[str, typer.Option(help="`model`: whole; `adapter`: LoRA's part alone.")]


@app.command("list")
def list_models(
    server: Server,
    name: Annotated[str | None, typer.Option(help="Only models of this name.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Models, newest first."""
    found = list(server.models.all(name=name, limit=limit))
    if as_json:
        print_json(found)
        return
    table(
        {"model": "left", "kind": "left", "size": "right", "job": "left", "age": "right", "id": "left"},
        (
            (escape(f"{m.name}@{m.version}"), m.kind, size(m.bytes), m.job_id, age(m.created_at), f"[dim]{m.id}[/]")
            for m in found
        ),
        "No models. A job that succeeds hands one over.",
    )


@app.command()
def show(server: Server, model: ModelName, kind: Kind = "model", as_json: AsJson = False) -> None:
    """One model, and where it comes from."""
    found = server.models.find(model, kind=kind)
    lineage = server.models.lineage(found.id)
    if as_json:
        print_json({**found.model_dump(mode="json"), "lineage": lineage})
        return
    pairs(
        [
            ("model", f"[bold]{escape(found.name)}@{found.version}[/]  {found.id}"),
            ("kind", found.kind),
            ("size", size(found.bytes)),
            ("sha256", found.sha256),
            ("job", f"{found.job_id}, attempt {found.attempt}"),
            ("made", f"{age(found.created_at)} ago"),
            ("in a spec", escape(found.reference)),
            *(
                (key, escape(str(value)))
                for key, value in lineage.items()
                if value is not None and not isinstance(value, dict | list)
            ),
        ]
    )


@app.command("lineage")
def show_lineage(server: Server, model: ModelName, kind: Kind = "model", as_json: AsJson = False) -> None:
    """What a model was made from: its data, the models before it, their data, and so on, each with its hash."""
    found = server.models.find(model, kind=kind)
    lineage = server.models.lineage(found.id)
    if as_json:
        print_json(lineage)
        return
    tree = Tree(f"[bold]{escape(found.name)}@{found.version}[/]  {_made(lineage, found.sha256)}")
    _grow(tree, lineage, lineage.get("ancestors", {}), shown=set())
    out.print(tree, soft_wrap=True)


def _made(lineage: dict[str, Any], sha256: str) -> str:
    return f"[dim]{escape(' '.join(str(lineage.get(name, '')) for name in ('stage', 'job')))}  {sha256[:12]}[/]"


def _grow(tree: Tree, lineage: dict[str, Any], ancestors: dict[str, Any], shown: set[str]) -> None:
    """Hangs on a model's branch what it was made from; of a model that several were made from, once."""
    for path, sha256 in lineage.get("data", {}).items():
        tree.add(f"{escape(path)}  [dim]rows  {escape(sha256[:12])}[/]")
    for path, parent in lineage.get("parents", {}).items():
        sha256 = parent["sha256"]
        before = ancestors.get(sha256)
        said = _made(before["lineage"], sha256) if before else f"[dim]{escape(sha256[:12])}[/]"
        branch = tree.add(f"{escape(path)}  [bold]{escape(parent['reference'])}[/]  {said}")
        if before and sha256 in shown:
            branch.add("[dim]as above[/]")
        elif before:
            shown.add(sha256)
            _grow(branch, before["lineage"], ancestors, shown)


@app.command()
def download(
    server: Server,
    model: ModelName,
    to: Annotated[Path | None, typer.Option("--to", "-o", help="A folder; absent: ./NAME-VERSION.")] = None,
    kind: Kind = "model",
) -> None:
    """Fetch a model's folder; its hashes are checked."""
    found = server.models.find(model, kind=kind)
    out.print(str(fetch(server, found, to or Path(f"{found.name}-{found.version}"))), markup=False)


@app.command()
def delete(server: Server, model: ModelName, kind: Kind = "model") -> None:
    """Remove a model."""
    found = server.models.find(model, kind=kind)
    server.models.delete(found.id)
    say(f"[green]✓[/] {escape(found.name)}@{found.version} is removed.")


@talk.command()
def chat(
    server: Server,
    model: ModelName,
    *,
    once: Annotated[str | None, typer.Option(metavar="QUESTION", help="Answer this and end.")] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system's turn, before the first.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="For sampling with a temperature.")] = 17,
    json_lines: AsJson = False,
) -> None:
    """Talk to a finished model on this machine. Without a terminal, each line of the input is a question."""
    if find_spec("torch") is None:
        raise ApiError("Talking to a model needs torch here: pip install 'rlhf-operator[worker]'")
    arguments = ["--max-new-tokens", str(max_new_tokens), "--temperature", str(temperature), "--seed", str(seed)]
    for option, value in (("--system", system), ("--once", once)):
        # One word, so that a question may begin with a dash.
        arguments += [f"{option}={value}"] if value is not None else []
    folder = folder_of(server, server.models.find(model))
    replace_process(["-m", "worker.chat", str(folder), *arguments, *["--json"] * json_lines])


def folder_of(server: Client, model: Model) -> Path:
    """A whole folder of `model` on this machine: the store's own, or one in the cache, fetched if need be."""
    if model.location is not None:
        place = Path(model.location)
        # Another machine may have a folder of this name: its manifest must be the model's.
        try:
            if manifest.read(place).sha256 == model.sha256:
                return place
        except manifest.Damaged:
            pass
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlhf" / "models" / model.sha256
    return fetch(server, model, cache)


def fetch(server: Client, model: Model, to: Path) -> Path:
    """Downloads a model's folder, with a bar on standard error."""
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task(f"{model.name}@{model.version}", total=model.bytes)
        return server.models.download(model.id, to, seen=lambda done: bar.advance(task, done))
