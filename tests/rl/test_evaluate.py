"""Evaluation of finished models: numbers held against other ways to come by them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine import jobs
from tests.engine.jobs import Ended, Job, Plan, write_rows
from tests.engine.pool import Pool
from tests.model.conftest import input_at
from tests.rl import reward_cases
from tests.rl.comparisons import pairs
from worker.contract.check import parse_spec
from worker.contract.order import Order
from worker.contract.rows import ROWS, parse_line


class Evaluation(Job):
    """A job of evaluation: `spec` is whole, and paths of models stand in it."""

    def order(self, attempt: int) -> Order:
        spec = parse_spec(self.spec)
        inputs = {"stage.data.test": write_rows(self.store / "files" / "test.jsonl", self.rows)}
        stage = self.spec["stage"]
        named = {"stage.model": stage["model"], "stage.against": stage.get("against")}
        for number, term in enumerate(stage.get("reward", {}).get("terms", [])):
            named[f"stage.reward.terms.{number}.model"] = term.get("model")
        inputs |= {path: input_at(Path(model)) for path, model in named.items() if model is not None}
        store = f"file://{self.store}"
        empty = dict.fromkeys(("control_url_file", "token_file", "termination_file", "log_folder"), "")
        return Order(job=self.name, attempt=attempt, spec=spec, inputs=inputs, store=store, **empty)


def evaluation(store: Path, model: Path, rows: list[dict[str, Any]], **fields: Any) -> Evaluation:
    more = {name: fields.pop(name) for name in ("resources",) if name in fields}
    deepspeed = {"precision": "fp32", "zero": fields.pop("zero", 0)}
    stage = {"type": "evaluate", "model": str(model), "data": "files/test", "max_length": 200, "micro_batch": 2}
    return Evaluation(store, {"stage": stage | fields, "deepspeed": deepspeed, **more}, rows)


def measured(pool: Pool, made: Job) -> dict[str, float]:
    ended: Ended = pool.run(jobs.attempt, made, 1)[0]
    assert ended.outcome == "Finished", ended.message
    assert ended.outputs == []
    (reports,) = [m["metrics"] for m in ended.said if m["kind"] == "report" and m["metrics"]]
    assert "Evaluated" in ended.events
    return dict(reports)


@pytest.fixture(scope="module")
def trained(one: Pool, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Models by their stage and steps."""
    made: dict[tuple[str, int], Path] = {}

    def of(stage: str, steps: int) -> Path:
        if (stage, steps) not in made:
            store = tmp_path_factory.mktemp(f"{stage}-{steps}")
            rows = pairs(12) if stage == "reward" else jobs.dialogues(12)
            job = Job(store, jobs.spec(stage, stage__steps=steps, stage__max_length=200), rows)
            ended = one.run(jobs.attempt, job, 1)[0]
            assert ended.outcome == "Finished", ended.message
            made[stage, steps] = store / ended.outputs[0]["path"]
        return made[stage, steps]

    return of


Trained = Callable[[str, int], Path]


def test_on_the_way_a_model_is_measured_as_it_is_when_it_is_done(one: Pool, tmp_path: Path) -> None:
    rows = jobs.dialogues(7, seed=5)
    changes = {"stage__steps": 20, "stage__max_length": 200, "evaluate": {"data": "files/eval"}}
    job = Job(tmp_path / "sft", jobs.spec("sft", **changes), jobs.dialogues(12), held_out=rows)
    ended: Ended = one.run(jobs.attempt, job, 1)[0]
    assert ended.outcome == "Finished", ended.message
    afterwards = measured(one, evaluation(tmp_path / "after", job.store / ended.outputs[0]["path"], rows))
    on_the_way = {name: ended.curve(name)[20] for name in ("eval/loss", "eval/perplexity", "eval/accuracy")}
    assert on_the_way == pytest.approx(afterwards, rel=1e-5)
    assert ended.curve("eval/accuracy")[0] < on_the_way["eval/accuracy"] < 1


def test_dialogues_are_foreseen_as_transformers_foresees_them(one: Pool, tmp_path: Path, trained: Trained) -> None:
    where, rows = trained("sft", 20), jobs.dialogues(7, seed=5)
    found = measured(one, evaluation(tmp_path, where, rows))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(where), AutoTokenizer.from_pretrained(where)
    nats, right, tokens = 0.0, 0, 0
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["messages"][:1], tokenize=False, add_generation_prompt=True)
        answer = row["messages"][1]["content"] + "<|im_end|>"
        ids = torch.tensor([tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]])
        count = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logits = model(ids).logits[0, -count - 1 : -1]
        nats += torch.nn.functional.cross_entropy(logits, ids[0, -count:], reduction="sum").item()
        right += int((logits.argmax(-1) == ids[0, -count:]).sum())
        tokens += count
    expected = {"loss": nats / tokens, "perplexity": math.exp(nats / tokens), "accuracy": right / tokens}
    assert found == pytest.approx({f"eval/{name}": value for name, value in expected.items()}, rel=1e-5)


def test_a_text_longer_than_the_limit_is_read_in_pieces(one: Pool, tmp_path: Path, trained: Trained) -> None:
    where, text = trained("sft", 20), "the red cat sleeps " * 10
    found = measured(one, evaluation(tmp_path, where, [{"text": text}, {"text": "a dog"}], max_length=50))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(where), AutoTokenizer.from_pretrained(where)
    nats, tokens = 0.0, 0
    for whole in (text, "a dog"):
        ids = [*tokenizer(whole, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for start in range(0, len(ids), 50):
            piece = torch.tensor([ids[start : start + 50]])
            with torch.no_grad():
                logits = model(piece).logits[0, :-1]
            nats += torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="sum").item()
            tokens += piece.shape[1] - 1
    assert found["eval/loss"] == pytest.approx(nats / tokens, rel=1e-5)


def test_a_reward_model_is_measured_as_by_its_own_stage(one: Pool, tmp_path: Path, trained: Trained) -> None:
    where, rows = trained("reward", 10), pairs(9, seed=7)
    found = measured(one, evaluation(tmp_path, where, rows))
    changes: dict[str, Any] = {"stage__model": str(where), "evaluate": {"data": "files/eval"}, "stage__center": 0.0}
    again = Job(tmp_path / "again", jobs.spec("reward", stage__max_length=200, **changes), pairs(4), held_out=rows)
    ended = one.run(jobs.attempt, again, 1)[0]
    before = {name: ended.curve(name)[0] for name in found}
    assert found == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("kind", ["messages", "chosen", "prompt"])
@pytest.mark.parametrize("zero", [0, 3])
def test_two_ranks_measure_what_one_does(
    one: Pool, two: Pool, tmp_path: Path, trained: Trained, kind: str, zero: int
) -> None:
    rows: Any = {
        "messages": jobs.dialogues(7),
        "chosen": pairs(7),
        "prompt": [{"prompt": f"cat {n}"} for n in range(7)],
    }
    fields: dict[str, Any] = {}
    if kind == "prompt":
        terms = [
            {"function": "sentiment"},
            {"function": "length", "weight": 0.5},
            {"model": str(trained("reward", 10))},
        ]
        fields = {"reward": {"terms": terms}, "rollout": {"prompts": 4, "slots": 2, "max_new_tokens": 12}}
    where = trained("reward" if kind == "chosen" else "sft", 10)
    alone = measured(one, evaluation(tmp_path / "one", where, rows[kind], **fields))
    spread = evaluation(tmp_path / "two", where, rows[kind], zero=zero, resources={"per_node": 2}, **fields)
    assert measured(two, spread) == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_answers_are_worth_what_the_reward_says_and_win_against_anothers(
    one: Pool, tmp_path: Path, trained: Trained
) -> None:
    rows = [{"prompt": f"the {word}"} for word in jobs.WORDS[:6]]
    terms = [{"model": str(trained("reward", 10)), "name": "taste"}, {"function": "length", "weight": 0.1}]
    fields = {"reward": {"terms": terms}, "rollout": {"prompts": 4, "slots": 3, "max_new_tokens": 10}}
    made = evaluation(tmp_path, trained("sft", 20), rows, against=str(trained("sft", 1)), **fields)
    ended = one.run(jobs.attempt, made, 1)[0]
    assert ended.outcome == "Finished", ended.message
    found: dict[str, float] = {}
    for said in ended.said:
        found |= said.get("metrics") or {}
    samples = [m["sample"] for m in ended.said if m["kind"] == "sample"]
    assert [one["prompt"] for one in samples] == [row["prompt"] for row in rows]
    ours = one.run(reward_cases.rewards_of, str(trained("reward", 10)), [[s["prompt"], s["answer"]] for s in samples])[
        0
    ]
    # Words that hold all of an answer's tokens; bytes that are no character, and special tokens, are not in them.
    whole = [
        number
        for number, sample in enumerate(samples)
        if len(sample["answer"].encode()) + sample["ended"] == round(sample["terms"]["length"] * 10)
    ]
    assert whole, "the test shows nothing"
    assert [samples[n]["terms"]["taste"] for n in whole] == pytest.approx([ours[n] for n in whole], abs=1e-4)
    mean = sum(s["terms"]["taste"] + 0.1 * s["terms"]["length"] for s in samples) / len(samples)
    assert found["eval/reward"] == pytest.approx(mean, rel=1e-5)
    assert found["reward/length"] == pytest.approx(sum(s["terms"]["length"] for s in samples) / len(samples))
    other = measured(
        one, evaluation(tmp_path / "b", trained("sft", 1), rows, against=str(trained("sft", 20)), **fields)
    )
    assert found["eval/win_rate"] + other["eval/win_rate"] == pytest.approx(1.0)
    same = measured(one, evaluation(tmp_path / "c", trained("sft", 1), rows, against=str(trained("sft", 1)), **fields))
    assert same["eval/win_rate"] == 0.5


def test_what_cannot_be_measured_is_refused(one: Pool, tmp_path: Path, trained: Trained) -> None:
    def refused(**given: Any) -> tuple[str, str]:
        ended = one.run(jobs.attempt, evaluation(tmp_path / str(len(list(tmp_path.iterdir()))), **given), 1)[0]
        return ended.outcome, ended.message

    prompts = [{"prompt": "hi"}]
    outcome, said = refused(model=trained("sft", 1), rows=prompts)
    assert (outcome, "stage.reward: is needed" in said) == ("InvalidSpec", True)
    outcome, said = refused(model=trained("sft", 1), rows=pairs(2))
    assert (outcome, "is no reward model" in said) == ("InvalidSpec", True)
    outcome, said = refused(model=trained("reward", 10), rows=jobs.dialogues(2))
    assert (outcome, "scores texts, and writes none" in said) == ("InvalidSpec", True)
    reward = {"terms": [{"function": "exact_match"}]}
    outcome, said = refused(model=trained("sft", 1), rows=prompts, reward=reward)
    assert (outcome, "prompt 1 has no `answer`" in said) == ("InvalidData", True)
    outcome, said = refused(model=trained("sft", 1), rows=jobs.dialogues(2), max_length=20)
    assert (outcome, "line 1" in said) == ("InvalidData", True)


@pytest.mark.parametrize("kind", ["messages", "prompt"])
def test_it_stops_when_asked_and_begins_anew(one: Pool, tmp_path: Path, trained: Trained, kind: str) -> None:
    rows: list[dict[str, Any]] = jobs.dialogues(9) if kind == "messages" else [{"prompt": "hi"}] * 9
    fields = {"reward": {"terms": [{"function": "sentiment"}]}} if kind == "prompt" else {}
    made = evaluation(tmp_path, trained("sft", 1), rows, **fields)
    assert one.run(jobs.attempt, made, 1, Plan(stop_at=3))[0].outcome == "Stopped"
    second = one.run(jobs.attempt, made, 2)[0]
    assert (second.outcome, second.resumed_from) == ("Finished", 0)


def test_every_kind_of_row_can_be_told() -> None:
    assert {"text", "messages", "chosen", "answers", "prompt"} <= set(ROWS)
    assert parse_line(json.dumps({"prompt": "hi"}).encode(), 1)[0] == "prompt"
