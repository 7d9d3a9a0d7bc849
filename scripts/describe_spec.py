"""docs/specs.md, from the models that check a spec: `python -m scripts.describe_spec > docs/specs.md`."""

import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from worker.contract.metrics import FAMILIES, METRICS
from worker.contract.ppo import PpoStage
from worker.contract.rewards import ExactMatchTerm, LengthTerm, ModelTerm, RegexTerm, SentimentTerm, ServiceTerm
from worker.contract.rows import RowKind
from worker.contract.spec import STAGES, JobSpec
from worker.contract.stages import TrainStage

HEAD = """# The job spec

A spec is YAML for people or JSON for `POST /v1/jobs`. `{"stage": {"type", "model", "data"}}` is a whole one: all else
has a default. Unknown fields are refused, and so is everything that cannot work; all problems are told at once, each
with the path to its field. `rlhf spec validate FILE` checks without a server.

Durations are a number and a unit (`90s`, `30m`, `24h`), memory is a Kubernetes quantity (`16Gi`). A reference is
`models/NAME[@version]` (a registered model), `files/ID` (an upload), a path that starts with `/` or `./` and lies
under a folder that the server allows, or a hub's name; in a [pipeline](pipelines.md) also `{from: STEP.OUTPUT}`.
References are resolved to a hash when the job is made, and those to steps when these have succeeded: what is trained on
cannot change underneath it.

Rows are JSON, one a line:

| stage | rows |
|---|---|
ROWS
| evaluate | any of them |

A prompt is a text, which is a user's turn, or messages.

This page is made from the code (`python -m scripts.describe_spec`), and a test holds that it is current.
"""

# Counts end where a 32-bit integer does: no limit that a person would meet.
_NO_LIMIT = 2**31 - 1

# How the rows of a kind are told to people.
_FORMS: dict[RowKind, str] = {
    "text": '`{"text"}`',
    "messages": '`{"messages": [{"role", "content"}]}`',
    "chosen": '`{"prompt", "chosen", "rejected", "margin"?}`',
    "answers": '`{"prompt", "answers": [{"text", "score"}]}`',
    "prompt": '`{"prompt", "answer"?}`',
}
_TERMS: dict[str, type[BaseModel]] = {
    "model": ModelTerm,
    "service": ServiceTerm,
    "sentiment": SentimentTerm,
    "exact_match": ExactMatchTerm,
    "length": LengthTerm,
    "regex": RegexTerm,
}


def _sections() -> Iterator[tuple[str, type[BaseModel], type[BaseModel] | None]]:
    """Title, model, and the model whose fields are told of before."""
    yield "stage, for every kind of training", TrainStage, None
    for name, stage in STAGES.items():
        yield f"stage: {name}", stage, TrainStage if issubclass(stage, TrainStage) else None
        if stage is PpoStage:
            yield from ((f"a term of a reward: {kind}", term, None) for kind, term in _TERMS.items())


def _rows() -> str:
    """A line of the table for each stage that states its rows."""
    traits = {name: stage.traits for name, stage in STAGES.items() if hasattr(stage, "traits")}
    return "\n".join(f"| {name} | {', or '.join(_FORMS[kind] for kind in its.rows)} |" for name, its in traits.items())


def page() -> str:
    """The whole page, as Markdown."""
    seen: set[type[BaseModel]] = set()
    parts = [HEAD.replace("ROWS", _rows()), "## The whole\n", _table(JobSpec, None)]
    for title, model, base in _sections():
        parts += [f"## {title}\n", _sentence(model), _table(model, base)]
        seen.add(model)
    queue = [m for model in (TrainStage, *STAGES.values(), JobSpec) for m in _inner(model)]
    while queue:
        model = queue.pop(0)
        if model in seen or model in STAGES.values():
            continue
        seen.add(model)
        parts += [f"## {model.__name__}\n", _sentence(model), _table(model, None)]
        queue += _inner(model)
    parts += ["## Metrics\n", "| name | what it is |\n|---|---|"]
    parts += [f"| `{name}` | {meaning} |" for name, meaning in (METRICS | FAMILIES).items()]
    return "\n".join(part for part in parts if part) + "\n"


def _sentence(model: type[BaseModel]) -> str:
    return f"{' '.join((model.__doc__ or '').split())}\n" if model.__doc__ else ""


def _table(model: type[BaseModel], base: type[BaseModel] | None) -> str:
    rows = ["| field | default | what it is |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if base is not None and name in base.model_fields and _default(base.model_fields[name]) == _default(field):
            continue
        rows.append(f"| `{name}` | {_default(field)} | {_meaning(field)} |")
    return "\n".join(rows) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return "absent"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, float) and (any(_is_duration(m) for m in field.metadata) or _is_duration(field.annotation)):
        return f"`{value:g}s`"
    return f"`{json.dumps(value)}`"


def _is_duration(part: Any) -> bool:
    return "30m" in str(getattr(part, "json_schema", "")) or any(_is_duration(p) for p in get_args(part))


def _meaning(field: FieldInfo) -> str:
    described = field.description or ""
    if any(_is_duration(m) for m in field.metadata) or _is_duration(field.annotation):
        parts = ["a duration", described] if described else ["a duration"]
    else:
        parts = [p for p in (_kind(field.annotation), _bounds(field), described) if p]
    return "; ".join(dict.fromkeys(parts)).replace("|", "\\|")


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{json.dumps(a).strip(chr(34))}`" for a in arguments)
    if origin in (Union, types.UnionType):
        kinds = [k for a in arguments if a is not type(None) and (k := _kind(a))]
        return " or ".join(dict.fromkeys(kinds))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation in STAGES.values():
            return f"`{annotation.model_fields['type'].annotation.__args__[0]}`"  # type: ignore[union-attr]
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    if origin is list and len(inner := _models_in(arguments[0])) == 1:
        return f"a list of {_kind(inner[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(origin or annotation, {dict: "an object", list: "a list"}.get(origin, ""))


def _bounds(field: FieldInfo) -> str:
    found: dict[str, Any] = {}
    for part in [*field.metadata, *_constraints(field.annotation)]:
        for bound in ("gt", "ge", "lt", "le"):
            if (value := getattr(part, bound, None)) is not None:
                found[bound] = value
        for inner in getattr(part, "metadata", ()):
            for bound in ("gt", "ge", "lt", "le"):
                if (value := getattr(inner, bound, None)) is not None:
                    found[bound] = value
    words = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}
    if found.get("le") == _NO_LIMIT:
        del found["le"]
    return " ".join(f"{words[b]} {found[b]:,}" for b in ("gt", "ge", "lt", "le") if b in found)


def _constraints(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return [*get_args(annotation)[1:], *_constraints(get_args(annotation)[0])]
    return [c for a in get_args(annotation) if get_origin(annotation) is not Literal for c in _constraints(a)]


def _inner(model: type[BaseModel]) -> list[type[BaseModel]]:
    return [m for field in model.model_fields.values() for m in _models_in(field.annotation)]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in get_args(annotation) for m in _models_in(a)]


if __name__ == "__main__":
    print(page(), end="")
