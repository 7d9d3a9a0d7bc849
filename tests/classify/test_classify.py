"""The stage from its rows to its output: the same however it is spread, resumed to the bit, whole in transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer, pipeline

from tests.classify import cases
from tests.classify.rows import BERT, DISTILBERT, GPT2, MODELS, ROWS
from tests.engine import jobs
from tests.engine.jobs import Ended, Job, Plan
from tests.engine.pool import Pool

LORA = {"rank": 4, "alpha": 8.0}


def job(store: Path, task: str = "single_label", rows: int = 14, **changes: Any) -> Job:
    made = {"stage__max_length": 160, "stage__model": {"config": BERT}, "stage__regression": task == "regression"}
    return Job(store, jobs.spec("classify", **(made | changes)), ROWS[task](rows))


def finished(pool: Pool, made: Job) -> Ended:
    ended: Ended = pool.run(jobs.attempt, made, 1)[0]
    assert ended.outcome == "Finished", ended.message
    return ended


def folder(made: Job, ended: Ended, kind: str = "model") -> Path:
    return made.store / next(output["path"] for output in ended.outputs if output["kind"] == kind)


@pytest.mark.parametrize("task", list(ROWS))
@pytest.mark.parametrize(("zero", "micro_batch"), [(0, 1), (2, 2), (3, 1)])
def test_two_ranks_give_the_gradient_of_one(
    one: Pool, two: Pool, tmp_path: Path, task: str, zero: int, micro_batch: int
) -> None:
    # 7 rows of 8: one rank has less to do. A llama's head for words has a dropout that no configuration switches off.
    config = MODELS["llama" if zero and task != "tokens" else "bert"]
    shape: dict[str, Any] = {"stage__batch": 8, "stage__model": {"config": config}}
    shape |= {} if task == "regression" else {"stage__class_weights": "balanced"}
    alone = job(tmp_path, task, 7, **shape, stage__micro_batch=8)
    shape |= {"resources": {"per_node": 2}, "deepspeed__zero": zero}
    spread = job(tmp_path, task, 7, **shape, stage__micro_batch=micro_batch)
    expected = torch.tensor(one.run(cases.gradient, alone)[0])
    for found in two.run(cases.gradient, spread):
        assert (torch.tensor(found) - expected).norm() / expected.norm() < 1e-5


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT with dropout, weights": (
        "single_label",
        {
            "stage__model": {"config": {**BERT, "hidden_dropout_prob": 0.1}},
            "stage__class_weights": "balanced",
        },
    ),
    "llama, several labels, ZeRO 3": (
        "multi_label",
        {"stage__model": {"config": jobs.LLAMA}, "deepspeed__zero": 3},
    ),
    "words, bf16": ("tokens", {"deepspeed": {"precision": "bf16", "zero": 0}}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stop_inside_an_accumulation_and_a_kill_after_it_end_in_the_same_bits(
    one: Pool, tmp_path: Path, variant: str
) -> None:
    task, changes = VARIANTS[variant]
    changes = {"stage__steps": 6, "checkpoint": {"every_steps": 2}, "evaluate": {"held_out": 0.3}} | changes
    whole, broken = job(tmp_path / "whole", task, **changes), job(tmp_path / "broken", task, **changes)
    unbroken = finished(one, whole)
    lives = [
        one.run(jobs.attempt, broken, number, plan)[0]
        for number, plan in enumerate([Plan(stop_at=10), Plan(kill_at=9), Plan()], start=1)
    ]
    assert [ended.outcome for ended in lives] == ["Stopped", "Killed", "Finished"], lives[-1].message
    assert {**lives[0].losses, **lives[1].losses, **lives[2].losses} == unbroken.losses
    first, second = folder(whole, unbroken), folder(broken, lives[-1])
    names = [file.name for file in first.iterdir() if file.name not in ("lineage.json", "manifest.json")]
    assert {"model.safetensors", "config.json", "evaluation.json"} <= set(names)
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_an_attempt_that_only_hands_over_has_the_evaluation_of_the_one_before(one: Pool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"stage__steps": 4, "checkpoint": {"every_steps": 4}, "evaluate": {"held_out": 0.3}}
    whole, broken = job(tmp_path / "whole", **changes), job(tmp_path / "broken", **changes)
    unbroken = finished(one, whole)
    # Four updates of four micro-batches and two evaluations of four; then the last checkpoint is there.
    looks = 4 * 4 + 2 * 4
    assert one.run(jobs.attempt, broken, 1, Plan(kill_at=looks + 1))[0].checkpoints == [4]
    ended = one.run(jobs.attempt, broken, 2)[0]
    assert ended.resumed_from == 4
    files = [folder(made, end) / "evaluation.json" for made, end in ((whole, unbroken), (broken, ended))]
    assert files[0].read_text() == files[1].read_text()


def test_two_ranks_evaluate_and_train_as_one(one: Pool, two: Pool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"stage__steps": 4, "evaluate": {"held_out": 0.4, "every_steps": 2}}
    for task in ROWS:
        alone = finished(one, job(tmp_path / task / "one", task, **changes))
        spread = job(tmp_path / task / "two", task, **changes, resources={"per_node": 2}, deepspeed__zero=2)
        both = finished(two, spread)
        assert list(both.losses.values()) == pytest.approx(list(alone.losses.values()), rel=1e-4)
        names = {name for said in alone.said for name in said.get("metrics", {}) if name.startswith("eval/")}
        assert len(names) >= 3
        for name in names:
            assert both.curve(name) == pytest.approx(alone.curve(name), rel=1e-4, abs=1e-5), name


def texts(rows: list[dict[str, Any]]) -> list[str]:
    return [row["text"] if "text" in row else " ".join(row["tokens"]) for row in rows]


@pytest.mark.parametrize("config", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("task", list(ROWS))
def test_the_pipelines_of_transformers_tell_what_the_evaluation_counted(
    one: Pool, tmp_path: Path, task: str, config: str
) -> None:
    changes: dict[str, Any] = {"stage__model": {"config": MODELS[config]}, "stage__steps": 12, "stage__micro_batch": 4}
    made = job(tmp_path, task, 24, **changes, evaluate={"data": "files/eval"})
    made.held_out = ROWS[task](9, seed=2)
    ended = finished(one, made)
    where = folder(made, ended)
    told = json.loads((where / "evaluation.json").read_text())
    config_ = json.loads((where / "config.json").read_text())
    asked = texts(made.held_out)
    if task == "tokens":
        assert set(config_["label2id"]) == {"O", "animal", "thing"}
        found = pipeline("token-classification", model=str(where), ignore_labels=[])(asked, batch_size=4)
        confusion = torch.zeros(3, 3, dtype=torch.int64)
        for row, entities in zip(made.held_out, found, strict=True):
            at = {entity["start"]: entity["entity"] for entity in entities}
            start = 0
            for word, tag in zip(row["tokens"], row["tags"], strict=True):
                confusion[config_["label2id"][tag], config_["label2id"][at[start]]] += 1
                start += len(word) + 1
        assert told["confusion"]["counts"] == confusion.tolist()
        return
    classifier = pipeline("text-classification", model=str(where))
    if task == "regression":
        assert config_["problem_type"] == "regression"
        values = torch.tensor([answer["score"] for answer in classifier(asked, batch_size=4)])
        wanted = torch.tensor([row["label"] for row in made.held_out])
        assert (values - wanted).square().mean().item() == pytest.approx(told["metrics"]["eval/loss"], rel=1e-4)
        return
    if task == "multi_label":
        assert config_["problem_type"] == "multi_label_classification"
        answers = classifier(asked, batch_size=4, top_k=None)
        right = sum(
            {answer["label"] for answer in every if answer["score"] > 0.5} == set(row["labels"])
            for row, every in zip(made.held_out, answers, strict=True)
        )
    else:
        assert config_["problem_type"] == "single_label_classification"
        answers = classifier(asked, batch_size=4)
        right = sum(row["label"] == answer["label"] for row, answer in zip(made.held_out, answers, strict=True))
    assert told["metrics"]["eval/accuracy"] == pytest.approx(right / len(asked))
    assert list(told["classes"]) == list(config_["label2id"])


@pytest.mark.parametrize(
    ("task", "config", "zero"),
    [("single_label", DISTILBERT, 0), ("single_label", GPT2, 3), ("tokens", BERT, 2)],
    ids=["distilbert", "gpt2, ZeRO 3", "bert's words, ZeRO 2"],
)
def test_adapters_are_trained_with_the_head_and_merged(
    one: Pool, tmp_path: Path, task: str, config: dict[str, Any], zero: int
) -> None:
    base = tmp_path / "base"
    _backbone(config, base)
    changes: dict[str, Any] = {"stage__lora": LORA, "stage__steps": 6, "deepspeed__zero": zero}
    made = job(tmp_path, task, stage__model=str(base), **changes, evaluate={"held_out": 0.4})
    made.spec["stage"]["max_length"] = 120
    ended = finished(one, made)
    assert "is new, and begins at random" in ended.events["ModelNote"]
    auto: Any = AutoModelForTokenClassification if task == "tokens" else AutoModelForSequenceClassification
    merged = auto.from_pretrained(folder(made, ended)).eval()
    labels = json.loads((folder(made, ended) / "config.json").read_text())["id2label"]
    start = auto.from_pretrained(base, id2label={int(n): name for n, name in labels.items()}).eval()
    # Whatever head `start` was given, the adapter brings its own.
    adapted = PeftModel.from_pretrained(start, folder(made, ended, "adapter")).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder(made, ended))
    batch = tokenizer(texts(made.rows)[:3], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected, found = merged(**batch).logits, adapted(**batch).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(ended.losses) == 6


def _backbone(config: dict[str, Any], where: Path) -> None:
    """A model without a head, as others hand over encoders."""
    from transformers import AutoConfig, AutoModel

    from worker.tokenizers import bytes_tokenizer

    given = {**config}
    torch.manual_seed(3)
    made = AutoConfig.for_model(given.pop("model_type"), vocab_size=259, pad_token_id=256, **given)
    AutoModel.from_config(made).save_pretrained(where)
    bytes_tokenizer().save_pretrained(where)


def test_a_classifier_goes_on_from_another_of_the_same_classes(one: Pool, tmp_path: Path) -> None:
    first = job(tmp_path / "first", stage__steps=8, evaluate={"held_out": 0.4})
    ended = finished(one, first)
    again = job(tmp_path / "again", stage__model=str(folder(first, ended)), stage__steps=1, evaluate={"held_out": 0.4})
    # Not all of its classes: the head's are what is told apart all the same.
    found = finished(one, again)
    assert found.curve("eval/loss")[0] == pytest.approx(ended.curve("eval/loss")[8], rel=1e-5)
    assert "ModelNote" not in found.events
    changed = [row | {"label": row["label"].upper()} for row in again.rows]
    other = Job(tmp_path / "other", again.spec, changed)
    refused = one.run(jobs.attempt, other, 1)[0]
    assert refused.outcome == "InvalidData"
    assert "is none of the model's classes: animal, other, thing" in refused.message


def test_the_events_tell_of_each_class_and_the_confusion(one: Pool, tmp_path: Path) -> None:
    made = job(tmp_path, stage__labels=["other", "thing", "animal", "plant"], evaluate={"held_out": 0.3})
    ended = finished(one, made)
    assert "no row that is trained on has the class plant" in ended.events["ClassWithoutRows"]
    table = ended.events["Evaluated"]
    assert "precision  recall" in table and "is \\ told" in table and "plant" in table
    assert list(ended.curve("eval/f1/animal")) == [0, 4]
    config = json.loads((folder(made, ended) / "config.json").read_text())
    assert config["id2label"] == {"0": "other", "1": "thing", "2": "animal", "3": "plant"}


def test_two_ranks_resume_to_the_last_bit(two: Pool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"stage__steps": 5, "checkpoint": {"every_steps": 2}, "stage__class_weights": "balanced"}
    changes |= {"resources": {"per_node": 2}, "deepspeed__zero": 2, "evaluate": {"held_out": 0.3}}
    whole, broken = job(tmp_path / "whole", "tokens", **changes), job(tmp_path / "broken", "tokens", **changes)
    unbroken = finished(two, whole)
    assert two.run(jobs.attempt, broken, 1, Plan(kill_at=9))[0].outcome == "Killed"
    ended = two.run(jobs.attempt, broken, 2)[0]
    assert ended.resumed_from == 2
    for name in ("model.safetensors", "evaluation.json"):
        assert (folder(whole, unbroken) / name).read_bytes() == (folder(broken, ended) / name).read_bytes()
