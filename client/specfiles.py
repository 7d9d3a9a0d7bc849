"""Specs from files: YAML or JSON, with changes from the command line."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from client.problems import ApiError


class BadFile(ApiError):
    """A spec file that cannot be read, with the place where it breaks."""


class _Twice(Exception):
    """A key that an object has twice: one of the two values would be dropped in silence."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _Twice(f"`{key}` is given twice")
        made[key] = value
    return made


class _Loader(yaml.SafeLoader):
    """YAML as 1.2 has it: `1e-4` is a number, `no` and `12:30` are texts; and a key given twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"`{key}` is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def _no_octal(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _no_octal)


def parse(text: str, where: str) -> Any:
    """The value of a YAML or JSON text. Raises BadFile with the line."""
    try:
        if text.lstrip().startswith("{"):
            try:
                return json.loads(text, object_pairs_hook=_once)
            except ValueError:
                pass  # a flow mapping of YAML, perhaps; its reader has the better words
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise BadFile(f"{where}{line}: {error.problem}") from None
    except _Twice as error:
        raise BadFile(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        raise BadFile(f"{where}: {error}") from None


def read(source: str) -> dict[str, Any]:
    """The spec in a file, or on standard input for `-`. Raises BadFile."""
    where = "standard input" if source == "-" else source
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadFile(f"There is no file {source}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{where} cannot be read: {error}") from None
    spec = parse(text, where)
    if not isinstance(spec, dict):
        raise BadFile(f"{where} holds no spec: a spec is an object with a `stage`.")
    return spec


def change(spec: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """`spec` with each `a.b=value` set; the value is read as YAML. Raises BadFile."""
    for setting in settings:
        path, equals, value = setting.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise BadFile(f"--set {setting}: write it as path=value, such as stage.steps=100")
        spec = _with(spec, keys, parse(value, f"--set {path}"))
    return spec


def _with(spec: dict[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
    first, *rest = keys
    if not rest:
        return {**spec, first: value}
    inner = spec.get(first)
    return {**spec, first: _with(inner if isinstance(inner, dict) else {}, rest, value)}
