"""A spec to begin with: what must be said of a stage, and as comments all that may be, each with its default."""

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from worker.contract.describe import is_duration, meaning, models_in
from worker.contract.rows import EXAMPLES
from worker.contract.spec import STAGES, JobSpec

_WIDTH = 118
# Where the comment behind a value begins.
_COLUMN = 44
# What is seldom said, and long.
_ELSEWHERE = {
    "pod": "docs/specs.md, Pod",
    "config": "docs/specs.md, DeepSpeedConfig",
    "guards": "docs/specs.md, Guards",
}
# Texts that need no quotes.
_PLAIN = re.compile(r"(?!(?:true|false|null|yes|no|on|off)$)[A-Za-z./][\w./-]*")
_NEXT = "Check it: rlhf spec validate FILE; its memory: rlhf estimate FILE; run it: rlhf submit FILE --watch"


def template(stage: str) -> str:
    """The YAML of a spec for a stage. It is valid as it is, and with comments made fields that have a value."""
    model = STAGES[stage]
    begun: dict[str, Any] = getattr(model, "begun", {})
    head = [" ".join((model.__doc__ or "").split())]
    if (traits := getattr(model, "traits", None)) is not None:
        head += [f"A row of rows.jsonl: {EXAMPLES[kind]}" for kind in traits.rows]
        head.append(f"Its learning rate, where none is given: {traits.lr:g}; with adapters {traits.lr_of_lora:g}.")
    lines = [line for part in [*head, _NEXT] for line in textwrap.wrap(part, _WIDTH - 2)]
    lines = [*(f"# {line}" for line in lines), "", f"name: {stage}", "stage:", f"  type: {stage}"]
    lines += [*_fields(model, "  ", begun, skip=("type",)), "", *_fields(JobSpec, "", {}, skip=("name", "stage"))]
    return "\n".join(lines) + "\n"


def begin(stage: str) -> str:
    """The YAML of a spec that says of a stage what it must say, and nothing else."""
    begun: dict[str, Any] = getattr(STAGES[stage], "begun", {})
    lines = [
        f"name: {stage}",
        "stage:",
        f"  type: {stage}",
        *(f"  {name}: {_value(its)}" for name, its in begun.items()),
    ]
    return "\n".join(lines) + "\n"


def _fields(model: type[BaseModel], indent: str, given: dict[str, Any], skip: tuple[str, ...]) -> Iterator[str]:
    """The fields of a model: those that are given first, then the others as comments."""
    names = [name for name in model.model_fields if name not in skip]
    for name in sorted(names, key=lambda name: name not in given):
        field = model.model_fields[name]
        if name in given:
            yield from _line(indent, indent, name, _value(given[name]), field)
        else:
            value = field.get_default(call_default_factory=True)
            yield from _commented(name, field, value, f"{indent}# ", f"{indent}# ")


def _commented(name: str, field: FieldInfo, value: Any, margin: str, indent: str) -> Iterator[str]:
    """A field with its value and what is in it, as comments; these begin at `margin`, this field at `indent`."""
    inner = models_in(field.annotation)
    if name in _ELSEWHERE and inner:
        yield f"{indent}{name}:{'' if value is None else ' {}'}".ljust(_COLUMN) + f"  # {_ELSEWHERE[name]}"
        return
    # Of a list of models, or of one with fields that have no default, there is nothing to begin with.
    parts = inner[0].model_fields if len(inner) == 1 and isinstance(value, BaseModel | None) else {}
    if parts and not any(part.is_required() for part in parts.values()):
        yield from _line(margin, indent, name, "", field, inner[0])
        for part, its in parts.items():
            default = its.get_default(call_default_factory=True) if value is None else getattr(value, part)
            yield from _commented(part, its, default, margin, f"{indent}  ")
        return
    if isinstance(value, BaseModel):
        value = value.model_dump()
    shown = f"{value:g}s" if value is not None and is_duration(field) else _value(value)
    yield from _line(margin, indent, name, shown, field)


def _line(
    margin: str, indent: str, name: str, value: str, field: FieldInfo, model: type[BaseModel] | None = None
) -> Iterator[str]:
    """A field, and behind it what it is, on as many lines as that takes."""
    said = field.description or (_first_sentence(model) if model else meaning(field))
    code = f"{indent}{name}: {value}".rstrip().ljust(_COLUMN)
    for number, part in enumerate(textwrap.wrap(said, _WIDTH - _COLUMN - 4) or [""]):
        yield ((code if number == 0 else margin.ljust(_COLUMN)) + (f"  # {part}" if part else "")).rstrip()


def _first_sentence(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split()).partition(". ")[0].removesuffix(".")


def _value(value: Any) -> str:
    """In YAML's flow style; what is absent is nothing."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_value(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else json.dumps(value)
