"""What the fields of a spec are, in words: for the documentation, and for specs that are begun by a command."""

import json
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

Called = Callable[[type[BaseModel]], str]
# Counts end where a 32-bit integer does: no limit that a person would meet.
_NO_LIMIT = 2**31 - 1


def default(field: FieldInfo) -> str:
    """The default of a field, as Markdown."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return "absent"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, float) and is_duration(field):
        return f"`{value:g}s`"
    return f"`{json.dumps(value)}`"


def is_duration(field: FieldInfo) -> bool:
    """Whether a field takes a duration."""
    return any(_is_duration(part) for part in field.metadata) or _is_duration(field.annotation)


def _is_duration(part: Any) -> bool:
    return "30m" in str(getattr(part, "json_schema", "")) or any(_is_duration(p) for p in get_args(part))


def meaning(field: FieldInfo, called: Called = lambda model: model.__name__) -> str:
    """What a field takes, within which bounds, and what it is; `called` names models."""
    described = field.description or ""
    if is_duration(field):
        parts = ["a duration", described] if described else ["a duration"]
    else:
        parts = [p for p in (_kind(field.annotation, called), _bounds(field), described) if p]
    return "; ".join(dict.fromkeys(parts))


def _kind(annotation: Any, called: Called) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0], called)
    if origin is Literal:
        return ", ".join(f"`{json.dumps(a).strip(chr(34))}`" for a in arguments)
    if origin in (Union, types.UnionType):
        kinds = [k for a in arguments if a is not type(None) and (k := _kind(a, called))]
        return " or ".join(dict.fromkeys(kinds))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return called(annotation)
    if origin is list and len(inner := models_in(arguments[0])) == 1:
        return f"a list of {_kind(inner[0], called)}"
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


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in get_args(annotation) for m in models_in(a)]


def type_of(model: type[BaseModel]) -> str:
    """The only value of a model's `type`."""
    return str(get_args(model.model_fields["type"].annotation)[0])
