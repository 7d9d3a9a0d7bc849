"""How things look: one voice, one set of colours, tables that fit, and JSON for programs."""

import json
import os
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NoReturn

from pydantic import BaseModel
from rich import markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.problems import ApiError, Problem, Unreachable
from client.records import Attempt, Job, Step
from worker.contract.check import InvalidSpec

# A pipe has no width: what goes into it is not cut to one.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 240)
err = Console(stderr=True, highlight=False)

# Exit codes: 0 done, 1 the job (or the server) says no, 2 wrong use or an invalid spec, 3 nobody answers.
REFUSED, MISUSED, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130

_PHASE_STYLES = {
    "queued": "cyan",
    "starting": "cyan",
    "running": "blue",
    "finishing": "blue",
    "paused": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
}
# What a terminal obeys: it moves the cursor, renames the window, writes the clipboard. (0x9b is ESC [ in one.)
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
# JSON escapes the lower ones itself.
_ESCAPED = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
LEVEL_STYLES = {"info": "", "warning": "yellow", "error": "red"}


def print_json(value: Any) -> None:
    """One JSON document, for programs; indented when a person looks."""
    print(as_json(value, indent=2 if sys.stdout.isatty() else None), flush=True)


def as_json(value: Any, indent: int | None = None) -> str:
    """A record, or a list of them, as JSON."""
    return json.dumps(_document(value), indent=indent, ensure_ascii=False).translate(_ESCAPED)


def _document(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_document(v) for v in value]
    return value


def plain(text: str) -> str:
    """Another's words without the control characters that a terminal would obey; newlines and tabs stay."""
    return text.translate(_CONTROLS)


def escape(text: str) -> str:
    """Another's words as markup that shows them as they are, and does nothing else."""
    return markup.escape(plain(text))


def progress_of(job: Job | Step | Attempt) -> str:
    """`63/120`, as far as it is known."""
    if job.progress is None:
        return ""
    return f"{job.progress.step}/{job.progress.steps}" if job.progress.steps else str(job.progress.step)


def phase(name: str) -> str:
    """A phase in its colour."""
    return f"[{_PHASE_STYLES.get(name, 'white')}]{escape(name)}[/]"


def why(reason: str | None, message: str = "") -> str:
    """A reason and its sentence, as far as they are there."""
    return escape(": ".join(part for part in (reason, message) if part))


def age(then: datetime | None, now: datetime | None = None) -> str:
    """How long ago, in the largest unit: `4 s`, `12 min`, `3 h`, `5 d`."""
    if then is None:
        return ""
    return duration(max(0.0, ((now or datetime.now(UTC)) - then).total_seconds()))


def duration(seconds: float | None) -> str:
    """Seconds in the largest unit that leaves a number of two digits or so."""
    if seconds is None:
        return ""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: int) -> str:
    """Bytes in a unit that people read."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


def clock(at: datetime) -> str:
    """A time of day, here."""
    return at.astimezone().strftime("%H:%M:%S")


def table(columns: dict[str, str], rows: Iterable[Iterable[str]], empty: str) -> None:
    """A table without lines; `columns`: title -> `left`, `right`, `wrap` or `cut` (to what is left of the line).

    Where nothing is there, the sentence `empty`.
    """
    grid = Table(box=None, pad_edge=False, header_style="bold dim", padding=(0, 2, 0, 0))
    for title, side in columns.items():
        # Where the line is too short, a sentence gives way, and never an id.
        grid.add_column(title, justify="right" if side == "right" else "left", no_wrap=side in ("left", "right"))
    cut = [index for index, side in enumerate(columns.values()) if side == "cut"]
    count = 0
    for row in rows:
        cells: list[str | Text] = list(row)
        for index in cut:
            cells[index] = Text.from_markup(str(cells[index]), overflow="ellipsis")
            cells[index].no_wrap = True  # type: ignore[union-attr]
        grid.add_row(*cells)
        count += 1
    if count:
        out.print(grid)
    else:
        err.print(empty, style="dim")


def pairs(entries: Iterable[tuple[str, str]]) -> None:
    """Names and values, one below the other; what has no value is left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for name, value in entries:
        if value:
            grid.add_row(name, value)
    out.print(grid)


def say(text: str) -> None:
    """A sentence beside the result: on standard error, so that pipes stay clean."""
    err.print(text, soft_wrap=True)


def fail(error: BaseException) -> NoReturn:
    """An error as sentences on standard error, and the exit code that says what kind it was."""
    if isinstance(error, InvalidSpec):
        _sentences("The spec is not right:", [(p.path, p.message) for p in error.problems])
        sys.exit(MISUSED)
    if isinstance(error, Problem):
        head = error.title if error.repeats or not error.detail else error.detail
        _sentences(head, [(f.path, f.message) for f in error.fields])
        if error.status == 401:
            say("Put an API key into RLHF_API_KEY; an admin makes one by `rlhf keys create NAME`.")
        if error.status == 412:
            say("Somebody changed it in between; look again, and repeat.")
        sys.exit(MISUSED if error.status in (400, 422) else REFUSED)
    if isinstance(error, Unreachable):
        _sentences(str(error), [])
        say(f"Start one here with [bold]rlhf serve{_port(error.url)}[/], or name another with --server or RLHF_SERVER.")
        sys.exit(UNREACHABLE)
    assert isinstance(error, ApiError | OSError | ValueError), error
    _sentences(str(error), [])
    sys.exit(MISUSED if isinstance(error, ApiError) else REFUSED)


def _sentences(head: str, fields: list[tuple[str, str]]) -> None:
    err.print(f"[red]✗[/] {escape(head)}", soft_wrap=True)
    for path, message in fields:
        err.print(f"  [bold]{escape(path)}[/]  {escape(message)}", soft_wrap=True)


def _port(url: str) -> str:
    port = url.rpartition(":")[2]
    return f" --port {port}" if port.isdigit() and port != "8000" else ""


def replace_process(arguments: list[str], environment: dict[str, str] | None = None) -> NoReturn:
    """Becomes another Python program: `python ARGUMENTS`. Signals and the terminal are its own then."""
    sys.stdout.flush()
    sys.stderr.flush()
    # -P: with -m, Python would look for modules in the working directory first, and a person's own `api` is not ours.
    os.execve(sys.executable, [sys.executable, "-P", *arguments], {**os.environ, **(environment or {})})


def shown(arguments: Iterable[str]) -> str:
    """A command as one would type it."""
    return shlex.join(arguments)
