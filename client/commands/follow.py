"""Looking at something until it is over: a live picture for people, lines for pipes, JSON lines for programs."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import typer
from rich.console import RenderableType
from rich.live import Live

from client.commands.followed import Following
from client.problems import Unreachable
from client.records import Job, Pipeline
from client.terminal import INTERRUPTED, REFUSED, UNREACHABLE, age, as_json, err, escape, out, say

# Seconds between two looks.
EVERY = 0.5
New = TypeVar("New")
Told = TypeVar("Told")


def follow(
    followed: Following[New, Told],
    *,
    json_lines: bool,
    picture: Callable[[], RenderableType],
    told: Callable[[list[Told]], None],
    not_well: Callable[[], str],
) -> int:
    """Looks until all is over, or rests; gives the exit code.

    `picture` draws how it is now, `told` prints what is new as lines; `not_well` says what has not succeeded, and gives
    the command that helps, if there is one.
    """
    try:
        if json_lines:
            _json_lines(followed)
        elif out.is_terminal:
            _live(followed, picture)
        else:
            for news in _looks(followed):
                told(news)
    except Unreachable as error:
        say(f"[red]✗[/] {escape(str(error))} It may still be running; rlhf watch {followed.now.id} looks again.")
        return UNREACHABLE
    now = followed.now
    if now.phase == "succeeded":
        if not json_lines:
            took = age(now.created_at, now.finished_at) if now.finished_at else ""
            out.print(f"[green]✓[/] {escape(now.name)} succeeded{f' after {took}' if took else ''}.")
        return 0
    if not json_lines:
        if hint := not_well():
            err.print(f"[dim]{hint}[/]")
        sys.stdout.flush()
    return REFUSED


def _looks(followed: Following[New, Told]) -> Iterator[list[Told]]:
    while True:
        yield followed.look()
        if followed.over:
            return
        time.sleep(EVERY)


def _json_lines(followed: Following[New, Told]) -> None:
    """One line each time that something has changed; the last is the end."""
    before = ""
    for _ in _looks(followed):
        now = as_json(followed.now)
        if now != before and followed.silent_since is None:
            print(now, flush=True)
            before = now


def _live(followed: Following[New, Told], picture: Callable[[], RenderableType]) -> None:
    with Live(console=out, refresh_per_second=8, transient=True) as live:
        for _ in _looks(followed):
            live.update(picture())
    out.print(picture())


@contextmanager
def left_running(what: Job | Pipeline) -> Iterator[None]:
    """Ctrl-C ends the watching, not the work; that is said."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"[dim]It goes on without you; rlhf watch {what.id} looks again.[/]")
        raise typer.Exit(INTERRUPTED) from None
