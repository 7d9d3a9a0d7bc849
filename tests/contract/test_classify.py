"""Classification in the contract: its spec, its rows, and what it may begin with."""

import json
from typing import Any

import pytest

from worker.contract.check import InvalidSpec, parse_spec
from worker.contract.pipeline import parse_pipeline
from worker.contract.rows import BadRow, check_rows

pytestmark = pytest.mark.quick


def classify(**fields: Any) -> dict[str, Any]:
    return {"stage": {"type": "classify", "model": "models/base", "data": "files/file-abc", **fields}}


def test_type_model_and_data_are_a_whole_spec() -> None:
    spec = parse_spec(classify())
    assert (spec.title, spec.micro_batch, spec.lr) == ("classify", 8, 3e-5)
    assert parse_spec(classify(lora={})).lr == 2e-4


@pytest.mark.parametrize(
    ("fields", "path", "says"),
    [
        ({"packing": True}, "stage.packing", "must be False"),
        ({"labels": ["a"]}, "stage.labels", "at least 2"),
        ({"labels": ["a", "b", "a"]}, "stage.labels", "`a` is there twice"),
        ({"labels": ["a", "b"], "class_weights": {"c": 1.0}}, "stage.class_weights", "`c` is none of stage.labels"),
        ({"class_weights": {"c": 0.0}}, "stage.class_weights.c", "greater than 0"),
        ({"class_weights": "even"}, "stage.class_weights", "balanced"),
        ({"regression": True, "labels": ["a", "b"]}, "stage.labels", "has no classes"),
        ({"regression": True, "class_weights": "balanced"}, "stage.class_weights", "has no classes"),
    ],
)
def test_an_impossible_spec_is_refused_with_its_path(fields: dict[str, Any], path: str, says: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        parse_spec(classify(**fields))
    found = {p.path: p.message for p in refused.value.problems}
    assert says in found[path], found


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "a", "label": "spam"}, "label"),
        ({"text": "a", "label": 3}, "label"),
        ({"text": "a", "label": -0.5}, "label"),
        ({"text": "a", "labels": []}, "labels"),
        ({"text": "a", "labels": ["x", 2]}, "labels"),
        ({"tokens": ["a", "b"], "tags": ["X", "O"]}, "tokens"),
        ({"text": "a"}, "text"),
    ],
)
def test_a_row_is_told_by_its_labels(row: dict[str, Any], kind: str) -> None:
    assert check_rows([json.dumps(row).encode()]) == (kind, 1)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"label": "spam"}, "`text`"),
        ({"text": " ", "label": "spam"}, "nothing but blanks"),
        ({"text": "a", "label": ""}, "`label"),
        ({"text": "a", "label": True}, "`label"),
        ({"text": "a", "labels": ["x", "x"]}, "names a class twice"),
        ({"tokens": ["a", "b"], "tags": ["X"]}, "2 `tokens` have 1 `tags`"),
        ({"tokens": ["a", " "], "tags": ["X", "O"]}, "`tokens.1`: has nothing but blanks"),
        ({"tokens": [], "tags": []}, "`tokens`"),
    ],
)
def test_a_row_that_cannot_be_learnt_is_refused_with_its_line(row: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRow) as bad:
        check_rows([json.dumps(row).encode()])
    assert str(bad.value).startswith("line 1: ") and says in str(bad.value)


def test_a_step_begins_with_what_writes_or_classifies_and_with_no_reward_model() -> None:
    def steps(first: dict[str, Any], **second: Any) -> dict[str, Any]:
        begins = {"first": {"stage": {"model": "models/a", "data": "files/x", **first}}}
        return {"name": "p", "steps": begins | {"second": {"stage": {"data": "files/x", **second}}}}

    after: dict[str, Any] = {"model": {"from": "first.model"}}
    parse_pipeline(steps({"type": "sft"}, type="classify", **after))
    parse_pipeline(steps({"type": "classify"}, type="classify", **after))
    for first, second, says in [
        ("reward", "classify", "is a reward model; give a language model or a classifier"),
        ("classify", "sft", "is a classifier; give a language model"),
        ("classify", "reward", "is a classifier"),
    ]:
        with pytest.raises(InvalidSpec) as refused:
            parse_pipeline(steps({"type": first}, type=second, **after))
        assert says in str(refused.value)
