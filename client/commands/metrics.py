"""A job's curves, drawn in the terminal."""

from typing import Annotated

import plotext
import typer

from client.commands.options import AsJson, JobOrNewest, Server, job_or_newest
from client.records import Point
from client.terminal import escape, out, plain, print_json, say, table
from worker.contract.metrics import METRICS

app = typer.Typer()


@app.command()
def metrics(
    server: Server,
    job: JobOrNewest = None,
    *,
    name: Annotated[
        str | None, typer.Option(help="Which curve, such as train/loss; absent: the loss, and what else there is.")
    ] = None,
    height: Annotated[int, typer.Option(min=6, max=60, help="Lines of the plot.")] = 15,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Also points that a later attempt took again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """A job's curves, drawn in the terminal."""
    found = job_or_newest(server, job)
    points = server.jobs.metrics(found.id, name=name, superseded=superseded)
    if as_json:
        print_json(points)
        return
    curves: dict[str, list[Point]] = {}
    for point in points:
        curves.setdefault(point.name, []).append(point)
    if not curves:
        say(f"[dim]{escape(found.name)} has no {escape(name or 'metrics')} yet.[/]")
        return
    drawn = name or ("train/loss" if "train/loss" in curves else next(iter(curves)))
    out.print(plot(plain(drawn), curves[drawn], min(out.width, 100), height), markup=False, soft_wrap=True)
    if name is None:
        table(
            {"curve": "left", "points": "right", "first": "right", "last": "right", "": "cut"},
            (
                (
                    escape(curve),
                    str(len(line)),
                    f"{line[0].value:.5g}",
                    f"{line[-1].value:.5g}",
                    f"[dim]{escape(METRICS.get(curve, ''))}[/]",
                )
                for curve, line in sorted(curves.items())
            ),
            "",
        )


def plot(name: str, points: list[Point], width: int, height: int) -> str:
    """A curve over its steps, as text of `width` columns and `height` lines."""
    line = sorted(points, key=lambda p: (p.step, p.attempt))
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(min(width, 120), height)
    figure.title(f"{name} by step, last {line[-1].value:.4g} at {line[-1].step}")
    signal = figure.signal([p.step for p in line], [p.value for p in line], marker="braille")
    if len(line) > 1:
        signal.lines()
    figure.draw(signal)
    return str(plotext.uncolorize(figure.build())).rstrip("\n")
