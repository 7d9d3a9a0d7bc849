"""docs/values.md, from the chart's schema and its values: `python -m scripts.describe_values > docs/values.md`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[1] / "helm" / "rlhf-operator"
HEAD = """# Values of the chart

`helm show values helm/rlhf-operator` prints them with their defaults; an unknown one is refused. How they go together
is told in [docs/deploy.md](deploy.md).

This page is made from the chart's schema (`python -m scripts.describe_values`), and a test holds that it is current.

| value | default | what it is |
|---|---|---|
"""
_TAIL = """
## What lists hold

An object of Kubernetes' own has its own words, of which those that are named here are known:

| in | field | what it is |
|---|---|---|
"""
Schema = dict[str, Any]


def schema() -> Schema:
    """The chart's `values.schema.json`."""
    found: Schema = json.loads((CHART / "values.schema.json").read_text())
    return found


def values() -> dict[str, Any]:
    """The chart's defaults."""
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


def leaves(part: Schema, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Schema]]:
    """All values that have no others in them, by their path."""
    for name, inner in part.get("properties", {}).items():
        if inner.get("properties"):
            yield from leaves(inner, (*path, name))
        else:
            yield (*path, name), inner


def page() -> str:
    """The whole page, as Markdown."""
    given, known = schema(), values()
    rows = [_row(given, path, part, known) for path, part in leaves(given)]
    inner = [
        f"| {name} | `{'.'.join(path)}` | {_meaning(part)} |"
        for name, definition in given["$defs"].items()
        for path, part in leaves(definition)
    ]
    return HEAD + "\n".join(rows) + "\n" + _TAIL + "\n".join(inner) + "\n"


def _row(given: Schema, path: tuple[str, ...], part: Schema, known: Any) -> str:
    for name in path:
        known = known.get(name) if isinstance(known, dict) else None
    default = "absent" if known in (None, "", [], {}) else f"`{json.dumps(known, ensure_ascii=False)}`"
    return f"| `{'.'.join(path)}` | {default} | {_whole(given, path)}{_meaning(part)} |"


def _whole(given: Schema, path: tuple[str, ...]) -> str:
    """What the value is a part of, said once: at its first part."""
    said = []
    for depth in range(1, len(path)):
        parent = given
        for name in path[:depth]:
            parent = parent["properties"][name]
        first = next(iter(leaves(parent, path[:depth])))[0]
        if first == path:
            said.append(f"*{parent['description']}*: ")
    return "".join(said)


def _meaning(part: Schema) -> str:
    meaning = part["description"]
    if known := [f"`{value}`" for value in part.get("enum", ()) if value != ""]:
        meaning += f" ({', '.join(known)})"
    if of := part.get("items", {}).get("$ref"):
        meaning += f" (each: {of.rpartition('/')[2]}, below)"
    return meaning.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
