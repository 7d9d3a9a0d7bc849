"""What a spec would take: its memory, by role and phase, and what fits where it does not."""

from typing import Annotated, Any

import typer

from client.commands.options import AsJson, Server
from client.commands.submit import Settings, Source
from client.specfiles import change, read
from client.terminal import escape, out, pairs, print_json, table
from worker.contract.estimate import Estimate, Phase

app = typer.Typer()

_PARTS = ("standing", "gathered", "gradients", "buffers", "activations", "logits", "kv_cache")


@app.command()
def estimate(
    server: Server,
    source: Source,
    *,
    settings: Settings = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="What there is, such as 24Gi: of an accelerator, or without one of a node."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The memory that a spec needs, whether it fits (exit code 1: it does not), and the nearest spec that does."""
    found = server.estimate(change(read(source), settings or []), memory=memory)
    if as_json:
        print_json(found)
    else:
        _show(found)
    if found.fits is False:
        raise typer.Exit(1)


def _show(found: Estimate) -> None:
    table(
        {"role": "left", "parameters": "right", "trained": "right", "ZeRO": "right", "weights": "right",
         "gradients": "right", "optimizer": "right", "offloaded": "right"},
        (
            (
                escape(role.role), f"{role.parameters:,}", f"{role.trained:,}", str(role.zero),
                *(_size(count) for count in (role.weights, role.gradients, role.optimizer, role.on_host)),
            )
            for role in found.roles
        ),
        "",
    )  # fmt: skip
    out.print()
    shown = [part for part in _PARTS if any(getattr(phase, part) for phase in found.phases)]
    table(
        {"phase, of a rank": "left", **{part.replace("_", " "): "right" for part in shown}, "total": "right"},
        (_row(phase, shown, widest=phase.phase == found.peak_phase) for phase in found.phases),
        "",
    )
    out.print()
    host = found.host
    pairs(
        [
            ("peak of tensors", f"[bold]{_size(found.peak)}[/] a rank, in {escape(found.peak_phase)}"),
            (
                "host memory",
                f"{_size(host.rank)} a rank ({_size(host.base)} before the first tensor, {_size(host.tensors)} of "
                f"tensors, {_size(host.allocator)} of the allocator's own), {_size(host.node)} a node",
            ),
            ("there is", _limits(found)),
            ("fits", _verdict(found)),
        ]
    )
    if found.nearest is not None:
        out.print("\nThe nearest spec that fits:")
        for path, value in found.nearest.changes.items():
            out.print(f"  [green]--set {escape(path)}={escape(_written(value))}[/]", highlight=False)
        for cost in found.nearest.costs:
            out.print(f"    {escape(cost)}", style="dim", highlight=False)
        nearest = found.nearest
        out.print(f"  {_size(nearest.peak)} a rank at its peak, {_size(nearest.node)} of host memory a node")
    for note in found.notes:
        out.print(escape(note), style="dim", soft_wrap=True)


def _row(phase: Phase, shown: list[str], *, widest: bool) -> list[str]:
    cells = [escape(phase.phase), *(_size(getattr(phase, part)) for part in shown), _size(phase.total)]
    return [f"[bold]{cell}[/]" for cell in cells] if widest else cells


def _limits(found: Estimate) -> str:
    said = [(found.device_limit, "an accelerator"), (found.host_limit, "a node")]
    return ", ".join(f"{_size(limit)} {of}" for limit, of in said if limit is not None)


def _verdict(found: Estimate) -> str:
    if found.fits is None:
        return "say --memory to learn it"
    if found.fits:
        return "[green]yes[/]"
    return "[red]no[/]" if found.nearest else "[red]no, and no change of the spec that was tried makes it fit[/]"


def _size(count: int) -> str:
    """Binary units, as limits are written."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return "" if not count else f"{value:,.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
