"""Values: what is refused, and that each is told of."""

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from scripts.describe_values import leaves, page, schema, values
from tests.chart.rendering import CHART, ROOT, VALUES, Refused, chart, helm

Path = tuple[str, ...]
# Their contents are somebody else's words: names of nodes' labels, Kubernetes' own fields.
FREE = ("as Kubernetes has",)


def objects(part: dict[str, Any], path: Path = ()) -> Iterator[Path]:
    """The paths of all objects of the schema, with the whole first."""
    yield path
    for name, inner in part.get("properties", {}).items():
        if inner.get("properties"):
            yield from objects(inner, (*path, name))


def setting(path: Path, value: Any) -> str:
    return f"{'.'.join(path)}={json.dumps(value)}"


@pytest.mark.parametrize("path", list(objects(schema())), ids=".".join)
def test_an_unknown_value_is_refused_at_each_level_with_its_name(path: Path) -> None:
    with pytest.raises(Refused, match=r"(?s)additional properties 'unknown' not allowed"):
        chart(setting((*path, "unknown"), 1))


@pytest.mark.quick
@pytest.mark.parametrize("path", [path for path, _ in leaves(schema())], ids=".".join)
def test_a_value_of_the_wrong_type_is_refused(path: Path) -> None:
    given = schema()
    wrong: Any = values()
    jsonschema.validate(wrong, given)
    inner = wrong
    for name in path[:-1]:
        inner = inner.setdefault(name, {})
    part = dict(leaves(given))[path]
    inner[path[-1]] = 1 if part["type"] not in ("number", "integer") else "one"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, given)


@pytest.mark.parametrize(
    "wrong",
    [
        'replicas="two"',
        "replicas=0",
        'tolerations=[{"effect": "Never"}]',
        'worker.env=[{"nam": "X"}]',
        'extraVolumes=[{"name": "one", "emptyDir": {}, "hostPath": {}}]',
        'settings={"AUTH": "none"}',
        'image.digest="latest"',
        'store.path="store"',
        'store.s3.endpoint="https://key:secret@s3.example"',
        'networkPolicy.egress=[{"port": 443}]',
    ],
)
def test_what_cannot_work_is_refused_by_the_schema(wrong: str) -> None:
    with pytest.raises(Refused, match=rf"(?s)don't meet the specifications.*'?/{re.split('[.=]', wrong)[0]}"):
        chart(wrong)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["replicas=2"], "replicas: 2 of them cannot share a SQLite file; set database.existingSecret"),
        (['database.existingSecret="url"', "postgresql.enabled=true"], "each name a database"),
        (['jobs.namespace="rlhf-system"'], "jobs.otherNamespaces: rlhf-system is the control plane's own"),
        (['store.volume={"nfs": {}, "csi": {}}'], "store.volume: a volume has one source, and these are 2 (csi, nfs)"),
        (['store.s3={"bucket": "rlhf"}', 'store.volume={"nfs": {}}'], "store.s3.bucket and store.volume each name"),
        (['store.s3.existingSecret="s3"'], "store.s3.existingSecret: there is no bucket"),
        (["ingress.enabled=true"], "ingress.host: an Ingress needs the name"),
        (["gateway.enabled=true"], "gateway.parentRefs: a route needs the Gateway"),
    ],
)
def test_values_that_do_not_go_together_are_refused_with_a_sentence(settings: list[str], says: str) -> None:
    with pytest.raises(Refused, match=re.escape(says)):
        chart(*settings)


@pytest.mark.parametrize("name", [None, *(path.stem for path in VALUES.glob("*.yaml"))])
def test_helm_lint_has_nothing_against_it(name: str | None) -> None:
    given = [] if name is None else ["--values", str(VALUES / f"{name}.yaml")]
    said = helm("lint", "--strict", *given, str(CHART))
    assert "[WARNING]" not in said
    assert "[ERROR]" not in said


@pytest.mark.quick
def test_every_object_of_the_schema_is_closed_and_every_part_is_described() -> None:
    def look(part: dict[str, Any], where: str) -> None:
        if where and not where.endswith("[]") and "$ref" not in part:
            assert part.get("description"), where
        if part.get("type") == "object" and where != ".global":
            free = any(said in part.get("description", "") for said in FREE)
            assert "additionalProperties" in part or free, where
            if part.get("properties") and where != ".$volume":
                assert part["additionalProperties"] is False, where
        for name, inner in part.get("properties", {}).items():
            look(inner, f"{where}.{name}")
        if "items" in part:
            look(part["items"], f"{where}[]")

    given = schema()
    look(given, "")
    for name, part in given["$defs"].items():
        look(part, f".${name}")


@pytest.mark.quick
def test_every_value_is_in_the_schema_and_every_part_of_the_schema_has_a_default() -> None:
    known = {path for path, _ in leaves(schema())}

    def given(part: Any, path: Path = ()) -> Iterator[Path]:
        if path not in known and isinstance(part, dict) and part:
            for name, inner in part.items():
                yield from given(inner, (*path, name))
        else:
            yield path

    defaults = set(given(copy.deepcopy(values())))
    assert defaults <= known | {("affinity",)}
    assert {path for path in known - defaults if path[0] not in ("global", "settings", "affinity")} <= {
        ("postgresql", "resources", "limits")
    }


@pytest.mark.quick
def test_the_page_of_the_values_is_current() -> None:
    assert (ROOT / "docs/values.md").read_text() == page(), "python -m scripts.describe_values > docs/values.md"
