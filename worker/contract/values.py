"""Small value types that specs are made of: durations, sizes, names and references."""

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"

_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h|d)$")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"^(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")
_UNITS = {
    "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40,
}  # fmt: skip


class Strict(BaseModel):
    """A part of a spec: frozen, no unknown fields, no coercion, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def seconds(value: Any) -> float:
    """Seconds of a duration such as `30m`, `1.5h` or `600s`. Raises ValueError with what would be right."""
    if isinstance(value, str) and (found := _DURATION.match(value)):
        return float(found[1]) * _SECONDS[found[2]]
    # A finite number is what a stored duration reads back as.
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ValueError("write a duration as a number and a unit, such as 90s, 30m or 24h")


def quantity(value: str) -> float:
    """A Kubernetes quantity (`500m`, `2`, `16Gi`) as a plain number. Raises ValueError."""
    if found := _QUANTITY.match(value):
        return float(found[1]) * _UNITS[found[2] or ""]
    raise ValueError("write a Kubernetes quantity, such as 500m, 4 or 16Gi")


def _checked_quantity(value: str) -> str:
    if quantity(value) <= 0:
        raise ValueError("write a quantity above 0")
    return value


def _checked_reference(value: str) -> str:
    if ".." in value.split("/"):
        raise ValueError("a path may not contain `..`; write the path it leads to")
    if "\x00" in value or value != value.strip():
        raise ValueError("a reference has no blanks around it and no NUL in it")
    return value


Duration = Annotated[
    float,
    BeforeValidator(seconds),
    Field(gt=0, le=366 * 86400.0),
    WithJsonSchema({"type": ["string", "number"], "examples": ["90s", "30m", "24h"]}),
]
Quantity = Annotated[str, AfterValidator(_checked_quantity), Field(max_length=32, examples=["500m", "4", "16Gi"])]
Name = Annotated[str, Field(pattern=NAME_PATTERN, examples=["dolly-sft"])]
Reference = Annotated[
    str,
    AfterValidator(_checked_reference),
    Field(
        min_length=1,
        max_length=1024,
        description="`models/NAME[@version]`, `files/ID`, a path that starts with `/` or `./`, or a hub name",
        examples=["models/dolly-sft", "files/file-abcdefghijkl", "./data/train.jsonl"],
    ),
]
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
