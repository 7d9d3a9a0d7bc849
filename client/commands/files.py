"""Data files: upload, list, show, download, delete."""

from pathlib import Path
from typing import Annotated

import typer

from client.commands.options import AsJson, Server
from client.records import File
from client.terminal import age, escape, out, pairs, plain, print_json, say, size, table

app = typer.Typer(no_args_is_help=True, help="Data files.")
FileId = Annotated[str, typer.Argument(metavar="FILE", help="A file's id.")]


@app.command()
def upload(
    server: Server,
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="Rows of JSON, one a line.")],
    purpose: Annotated[str, typer.Option(help="What it is for.")] = "fine-tune",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print what a spec names it by, and no more.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send a JSONL file; every line of it is checked."""
    file = server.files.upload(path, purpose=purpose)
    if as_json:
        print_json(file)
    elif quiet:
        out.print(f"files/{file.id}")
    else:
        out.print(f"[green]✓[/] {escape(file.filename)}: {file.rows:,} rows of {file.kind}, {size(file.bytes)}")
        out.print(f"In a spec: [bold]files/{file.id}[/]")


@app.command("list")
def list_files(
    server: Server, limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20, as_json: AsJson = False
) -> None:
    """Files, newest first."""
    found = list(server.files.all(limit=limit))
    if as_json:
        print_json(found)
        return
    table(
        {"id": "left", "name": "left", "rows": "right", "of": "left", "size": "right", "age": "right"},
        ((f.id, escape(f.filename), f"{f.rows:,}", f.kind, size(f.bytes), age(f.created_at)) for f in found),
        "No files. `rlhf files upload ROWS.jsonl` sends one.",
    )


@app.command()
def show(server: Server, file: FileId, as_json: AsJson = False) -> None:
    """One file."""
    found = server.files.get(_bare(file))
    if as_json:
        print_json(found)
        return
    pairs(
        [
            ("file", f"[bold]{escape(found.filename)}[/]  {found.id}"),
            ("rows", f"{found.rows:,} of {found.kind}"),
            ("size", size(found.bytes)),
            ("sha256", found.sha256),
            ("sent", f"{age(found.created_at)} ago"),
            ("in a spec", f"files/{found.id}"),
        ]
    )


@app.command()
def download(
    server: Server,
    file: FileId,
    to: Annotated[Path | None, typer.Option("--to", "-o", help="Where; absent: its own name, here.")] = None,
) -> None:
    """Fetch a file's rows."""
    found = server.files.get(_bare(file))
    place = to or own_place(found)
    out.print(escape(str(server.files.download(found.id, place))))


@app.command()
def delete(server: Server, file: FileId) -> None:
    """Remove a file."""
    server.files.delete(_bare(file))
    say(f"[green]✓[/] {escape(_bare(file))} is removed.")


def own_place(file: File) -> Path:
    """A new file here, of the file's own name. Raises FileExistsError."""
    # Whoever sent the file chose the name: it may name no other folder, no hidden file, and nothing that is there.
    place = Path(plain(Path(file.filename).name).lstrip(".") or f"{file.id}.jsonl")
    if place.exists() or place.is_symlink():
        raise FileExistsError(f"{place} is there already; name another place, or this one, with --to")
    return place


def _bare(file: str) -> str:
    return file.removeprefix("files/")
