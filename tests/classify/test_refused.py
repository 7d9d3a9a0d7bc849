"""What cannot be learnt, or not by this model, is refused before the first step, with the line or the field."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from tests.classify.rows import BERT, GPT2, ROWS
from tests.engine.jobs import write_rows
from worker.classify.classes import Classes, classes_of
from worker.classify.examples import check_variety, examples, without_rows
from worker.classify.model import load_classifier
from worker.contract.check import parse_spec
from worker.contract.classify import ClassifyStage
from worker.contract.manifest import tree_hash
from worker.contract.order import Input
from worker.contract.rows import parse_line
from worker.errors import WorkerFailure
from worker.stages.classify import Classifying
from worker.tokenizers import bytes_tokenizer

ROBERTA = {**BERT, "model_type": "roberta", "max_position_embeddings": 300}


def stage_of(**fields: Any) -> ClassifyStage:
    stage = {"type": "classify", "model": "models/base", "data": "files/x", "max_length": 30} | fields
    found = parse_spec({"stage": stage}).stage
    assert isinstance(found, ClassifyStage)
    return found


def lines(rows: list[dict[str, Any]]) -> Any:
    return [(n, parse_line(json.dumps(row).encode(), n)[1]) for n, row in enumerate(rows, start=1)]


def text(label: Any) -> dict[str, Any]:
    return {"text": "a few words", "label": label}


def encoded(rows: list[dict[str, Any]], known: tuple[str, ...] | None = None, **fields: Any) -> Any:
    """(examples, classes) of rows."""
    stage, read = stage_of(**fields), lines(rows)
    classes = classes_of(read, stage, known)
    cut = stage.data.truncate
    return examples(read, classes, bytes_tokenizer(), max_length=stage.max_length, truncate=cut), classes


@pytest.mark.parametrize(
    ("rows", "fields", "says"),
    [
        (
            [text("a"), text("b"), text("c")],
            {"labels": ["a", "b"]},
            "line 3: the label `c` is none of stage.labels: a, b",
        ),
        ([text("a"), text("a")], {}, "all rows have the label `a`: one class is nothing to tell apart"),
        (
            [text("a"), text(0.5)],
            {},
            "line 2: `label` is 0.5, which is no class's name; for numbers set stage.regression",
        ),
        ([text(1), text("a")], {"regression": True}, "line 2: `label` must be a number"),
        ([{"text": "a", "labels": []}], {}, "no row has a label"),
        ([{"text": "a", "labels": ["x"]}], {}, "all rows have the label `x`"),
        ([{"text": "a", "labels": ["x"]}], {"regression": True}, "stage.regression: needs rows of `{text, label}`"),
        ([text("a"), {"text": "a", "labels": []}], {}, "line 2: is of another kind than line 1"),
        ([text("a"), text("b")], {"class_weights": {"c": 2.0}}, "stage.class_weights: `c` is no class; there are a, b"),
        ([text(str(n)) for n in range(1001)], {}, "1001 classes; at most 1000"),
        ([text("a"), {"text": "w" * 31, "label": "b"}], {}, "line 2: 31 tokens are more than max_length, 30"),
        ([{"tokens": ["a" * 31, "b"], "tags": ["X", "O"]}], {}, "line 1: 33 tokens are more than max_length, 30"),
    ],
)
def test_rows_are_refused_with_their_line(rows: list[dict[str, Any]], fields: dict[str, Any], says: str) -> None:
    with pytest.raises(WorkerFailure) as refused:
        encoded(rows, **fields)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("rows", "fields", "says"),
    [
        ([text("a"), text("a")], {"labels": ["a", "b"]}, "all rows that are trained on have the label `a`"),
        ([text(1), text(1)], {"regression": True}, "all rows that are trained on have the label 1"),
        ([{"text": "a", "labels": ["x", "y"]}] * 2, {}, "all rows that are trained on have the same labels"),
        ([{"tokens": ["a", "b"], "tags": ["O", "O"]}], {"labels": ["O", "X"]}, "have the label `O`"),
    ],
)
def test_one_class_only_is_refused(rows: list[dict[str, Any]], fields: dict[str, Any], says: str) -> None:
    items, classes = encoded(rows, **fields)
    with pytest.raises(WorkerFailure) as refused:
        check_variety(items, classes)
    assert says in str(refused.value)


@pytest.mark.parametrize("task", [task for task in ROWS if task != "regression"])
def test_classes_that_no_row_has_are_told(task: str) -> None:
    items, classes = encoded(ROWS[task](30), max_length=100)
    assert without_rows(items, classes) == []
    items, classes = encoded(ROWS[task](30), labels=[*classes.names, "plant"], max_length=100)
    assert without_rows(items, classes) == ["plant"]


def test_classes_are_sorted_numbers_by_their_size() -> None:
    assert encoded([text("b"), text("a")])[1].names == ("a", "b")
    assert encoded([text(10), text(9), text(-1)])[1].names == ("-1", "9", "10")
    assert encoded([text("b"), text("a")], labels=["b", "a"])[1].names == ("b", "a")
    assert encoded([text("b"), text("a")], known=("c", "b", "a"))[1].names == ("c", "b", "a")


def test_rows_that_are_too_long_lose_their_end_where_that_is_wished() -> None:
    cut = {"data": {"train": "files/x", "truncate": True}}
    (long, _), _ = encoded([{"text": "w" * 99, "label": "a"}, text("b")], **cut)
    assert len(long) == 30
    # Ten words of two letters: the tenth begins at the 28th token, the eleventh is cut off.
    row = {"tokens": ["ab"] * 12, "tags": ["X", "O"] * 6}
    (tagged,), _ = encoded([row], **cut)
    assert tagged.at.tolist() == [3 * n for n in range(10)]
    assert len(tagged.labels) == 10


def saved(where: Path, auto: Any, config: dict[str, Any], **labels: Any) -> str:
    """A model of another's making."""
    given = {**config}
    made = AutoConfig.for_model(given.pop("model_type"), vocab_size=259, pad_token_id=256, **given, **labels)
    model = auto.from_config(made)
    assert isinstance(model, PreTrainedModel)
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    model.save_pretrained(where)
    bytes_tokenizer().save_pretrained(where)
    return str(where)


def loaded(folder: Path, model: Any, task: str = "single_label", **fields: Any) -> Classes:
    stage = {"type": "classify", "model": model, "data": "files/x", "max_length": 40} | fields
    spec = parse_spec({"stage": stage | {"regression": task == "regression"}, "deepspeed": {"precision": "fp32"}})
    read, settings = lines(ROWS[task](12)), spec.stage
    assert isinstance(settings, ClassifyStage)
    inputs = {}
    if isinstance(model, str):
        digest = tree_hash(Path(model))
        inputs["stage.model"] = Input(reference=model, kind="path", location=model, sha256=digest)
    return load_classifier(spec, inputs, folder, lambda known: classes_of(read, settings, known))[1]


NAMES = {0: "animal", 1: "other", 2: "thing"}


@pytest.mark.parametrize(
    ("make", "task", "fields", "says"),
    [
        (
            lambda at: {"config": {"model_type": "gptj", "n_embd": 16}},
            "tokens",
            {},
            "gptj is no architecture of a classif",
        ),
        (lambda at: {"config": {"model_type": "whisper"}}, "single_label", {}, "whisper is no architecture"),
        (
            lambda at: {"config": {**ROBERTA}},
            "single_label",
            {"max_length": 60},
            "stage.max_length: the model has 43 pos",
        ),
        (
            lambda at: saved(
                at, AutoModelForCausalLM, {"model_type": "gptj", "n_embd": 16, "n_head": 2, "rotary_dim": 4}
            ),
            "tokens",
            {},
            "is a gptj, of which transformers makes no classifier of words",
        ),
        (
            lambda at: saved(at, AutoModelForSequenceClassification, GPT2, num_labels=1),
            "single_label",
            {},
            "is a reward model: it has one score, and no classes",
        ),
        (
            lambda at: saved(at, AutoModelForSequenceClassification, BERT, id2label=NAMES),
            "tokens",
            {},
            "the label `O` is none of the model's classes",
        ),
        (
            lambda at: saved(at, AutoModelForSequenceClassification, BERT, id2label={**NAMES, 1: "O"}),
            "tokens",
            {},
            "classifies texts already",
        ),
        (
            lambda at: saved(at, AutoModelForSequenceClassification, BERT, id2label=NAMES),
            "single_label",
            {"labels": ["thing", "other", "animal"]},
            "stage.labels:",
        ),
        (
            lambda at: saved(at, AutoModelForSequenceClassification, BERT, id2label=NAMES),
            "single_label",
            {"labels": ["thing", "other", "animal", "plant"]},
            "tells other classes apart",
        ),
        (
            lambda at: saved(at, AutoModelForSequenceClassification, BERT, id2label=NAMES),
            "regression",
            {},
            "tells other classes apart",
        ),
    ],
)
def test_a_model_without_such_a_head_is_refused(
    tmp_path: Path, make: Callable[[Path], Any], task: str, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(WorkerFailure) as refused:
        loaded(tmp_path, make(tmp_path / "model"), task, **fields)
    assert says in str(refused.value)


def test_a_model_that_padding_disturbs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertForSequenceClassification

    seeing = BertForSequenceClassification.forward

    def blind(self: Any, input_ids: Any, attention_mask: Any = None, **more: Any) -> Any:
        return seeing(self, input_ids=input_ids, **more)

    monkeypatch.setattr(BertForSequenceClassification, "forward", blind)
    with pytest.raises(WorkerFailure, match="padding changes what the model from scratch"):
        loaded(tmp_path, {"config": BERT})


def test_a_text_that_ends_in_what_pads_is_refused_for_a_decoder() -> None:
    read = lines([text("a"), {"text": "so it ends<|pad|>", "label": "b"}])
    classes = classes_of(read, stage_of(), None)
    with pytest.raises(WorkerFailure, match="line 2: ends in the token that pads"):
        examples(read, classes, bytes_tokenizer(), max_length=30, truncate=False)


def test_rows_to_evaluate_on_have_the_classes_of_those_that_are_trained_on(tmp_path: Path) -> None:
    method = Classifying(stage_of())
    method._classes = Classes("single_label", ("a", "b"))
    for rows, says in [
        ([text("c")], "files/eval: line 1: the label `c` is none of the classes: a, b"),
        ([{"text": "a", "labels": ["a"]}], "files/eval: its rows are of another kind"),
    ]:
        with pytest.raises(WorkerFailure) as refused:
            method.read(write_rows(tmp_path / says[-4:] / "eval.jsonl", rows), bytes_tokenizer())
        assert says in str(refused.value)
