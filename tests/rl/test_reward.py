"""The stage from its rows to its output: resumed to the bit, the same however it is spread, whole in transformers."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.engine import jobs
from tests.engine.jobs import Ended, Job, Plan
from tests.engine.pool import Pool
from tests.rl import reward_cases
from tests.rl.comparisons import pairs, read
from tests.rl.ppo_jobs import deepspeed

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
LORA = {"rank": 4, "alpha": 8.0}


def job(store: Path, rows: int = 11, **changes: Any) -> Job:
    return Job(store, jobs.spec("reward", **({"stage__max_length": 160} | changes)), pairs(rows))


def finished(pool: Pool, made: Job) -> Ended:
    ended: Ended = pool.run(jobs.attempt, made, 1)[0]
    assert ended.outcome == "Finished", ended.message
    return ended


def folder(made: Job, ended: Ended, kind: str = "model") -> Path:
    return made.store / next(output["path"] for output in ended.outputs if output["kind"] == kind)


@pytest.fixture(scope="module")
def learnt(one: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model whose head is not zero any more."""
    made = job(tmp_path_factory.mktemp("learnt"), stage__steps=6)
    return folder(made, finished(one, made))


def scores_by_transformers(where: Path, texts: list[str], adapter: Path | None = None) -> list[float]:
    """What anybody gets who loads the folder and pads to the right."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(where, num_labels=1).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter or where)
    assert tokenizer.padding_side == "right"
    batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    assert not batch["attention_mask"].all(), "nothing is padded: the test shows nothing"
    with torch.no_grad():
        found: list[float] = model(**batch).logits[:, 0].float().tolist()
    return found


def test_training_begins_at_the_loss_of_a_coin_and_goes_down(one: Pool, tmp_path: Path) -> None:
    made = job(tmp_path, 12, stage__steps=12, evaluate={"held_out": 0.25, "every_steps": 6}, stage__center=0.0)
    made.rows = [row | {"margin": None} if "chosen" in row else row for row in made.rows]
    ended = finished(one, made)
    assert ended.losses[1] == pytest.approx(math.log(2), abs=1e-7)
    assert sum(ended.losses[step] for step in (10, 11, 12)) / 3 < math.log(2) - 0.05
    assert ended.curve("train/accuracy")[1] == 0.5
    assert ended.curve("eval/accuracy")[0] == 0.5
    assert ended.curve("eval/calibration")[0] == 0.0
    assert list(ended.curve("eval/loss")) == [0, 6, 12]


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_two_ranks_give_the_gradient_of_one(
    one: Pool, two: Pool, tmp_path: Path, learnt: Path, zero: int, micro_batch: int
) -> None:
    # 7 rows of 8: one rank has less to do, and rows of two and of three answers lie in one batch.
    shape: dict[str, Any] = {"stage__batch": 8, "stage__model": str(learnt)}
    alone = job(tmp_path, 7, **shape, stage__micro_batch=8)
    shape |= {"resources": {"per_node": 2}, "deepspeed": deepspeed(zero)}
    spread = job(tmp_path, 7, **shape, stage__micro_batch=micro_batch)
    expected = torch.tensor(one.run(reward_cases.gradient, alone)[0])
    for found in two.run(reward_cases.gradient, spread):
        assert (torch.tensor(found) - expected).norm() / expected.norm() < 1e-5


VARIANTS: dict[str, dict[str, Any]] = {
    "ZeRO 0": {},
    "ZeRO 2": {"deepspeed__zero": 2},
    "ZeRO 3": {"deepspeed__zero": 3},
    "bf16": {"deepspeed": {"precision": "bf16", "zero": 0}},
    "LoRA": {"stage__lora": LORA | {"dropout": 0.1}},
    "LoRA, ZeRO 3": {"stage__lora": LORA, "deepspeed__zero": 3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stop_inside_an_accumulation_and_a_kill_after_it_end_in_the_same_bits(
    one: Pool, tmp_path: Path, learnt: Path, variant: str
) -> None:
    changes: dict[str, Any] = {"stage__steps": 6, "checkpoint": {"every_steps": 2}} | VARIANTS[variant]
    changes |= {"evaluate": {"held_out": 0.3}, "stage__model": str(learnt)}
    whole, broken = job(tmp_path / "whole", **changes), job(tmp_path / "broken", **changes)
    unbroken = finished(one, whole)
    lives = [
        one.run(jobs.attempt, broken, number, plan)[0]
        for number, plan in enumerate([Plan(stop_at=10), Plan(kill_at=9), Plan()], start=1)
    ]
    assert [ended.outcome for ended in lives] == ["Stopped", "Killed", "Finished"], lives[-1].message
    assert {**lives[0].losses, **lives[1].losses, **lives[2].losses} == unbroken.losses
    for kind in [output["kind"] for output in unbroken.outputs]:
        first, second = folder(whole, unbroken, kind), folder(broken, lives[-1], kind)
        assert [f.name for f in first.glob("*.safetensors")] == [f.name for f in second.glob("*.safetensors")]
        for file in [*first.glob("*.safetensors"), *first.glob("config.json"), *first.glob("tokenizer*")]:
            assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_two_ranks_resume_to_the_last_bit_and_give_the_model_of_one(one: Pool, two: Pool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"stage__steps": 6, "checkpoint": {"every_steps": 2}, "evaluate": {"held_out": 0.3}}
    alone = job(tmp_path / "alone", **changes)
    changes |= {"resources": {"per_node": 2}, "deepspeed__zero": 2}
    whole, broken = job(tmp_path / "whole", **changes), job(tmp_path / "broken", **changes)
    single, unbroken = finished(one, alone), finished(two, whole)
    for number, plan in enumerate([Plan(kill_at=7), Plan()], start=1):
        ended = two.run(jobs.attempt, broken, number, plan)[0]
    assert ended.outcome == "Finished"
    files = [folder(made, end) / "model.safetensors" for made, end in ((whole, unbroken), (broken, ended))]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert list(single.losses.values()) == pytest.approx(list(unbroken.losses.values()), rel=1e-4)


@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("config", [jobs.LLAMA, GPT2], ids=["llama", "gpt2"])
def test_transformers_gives_normalised_scores_that_the_worker_gives_too(
    one: Pool, tmp_path: Path, config: dict[str, Any], lora: dict[str, Any] | None
) -> None:
    base = job(tmp_path / "base", stage__model={"config": config}, stage__steps=3)
    start = folder(base, finished(one, base))
    made = job(tmp_path, stage__model=str(start), stage__lora=lora, stage__steps=6, evaluate={"held_out": 0.4})
    ended = finished(one, made)
    where = folder(made, ended)
    held = one.run(reward_cases.held_out, made)[0]
    # The answers' scores, by the worker's own reading.
    ours = one.run(reward_cases.scores_of, str(where), held["ids"])[0]
    theirs = scores_by_transformers(where, held["texts"])
    assert theirs == pytest.approx(ours, abs=1e-5)
    assert sum(theirs[n] for n in held["best"]) / len(held["best"]) == pytest.approx(0, abs=1e-5)
    written = json.loads((where / "config.json").read_text())
    assert written["architectures"][0].endswith("ForSequenceClassification")
    assert written["reward_normalised"]["answers"] == len(held["best"])
    assert written["reward_normalised"]["of"] == "the best answers of held-out rows"
    assert abs(written["reward_normalised"]["mean_before"]) > 1e-3
    assert written["reward_normalised"]["accuracy"] == pytest.approx(held_accuracy(theirs, held), abs=1e-6)
    assert (written["pad_token_id"], written["pad_token_id"] == written["eos_token_id"]) == (256, False)
    assert "mean score" in ended.events["RewardNormalised"]
    if lora is not None:
        adapter = folder(made, ended, "adapter")
        assert scores_by_transformers(start, held["texts"], adapter) == pytest.approx(theirs, abs=1e-4)


def held_accuracy(scores: list[float], held: dict[str, Any]) -> float:
    right = [scores[better] > scores[worse] for better, worse in zip(held["better"], held["worse"], strict=True)]
    return sum(right) / len(right)


def test_without_held_out_rows_the_training_rows_are_the_reference(one: Pool, tmp_path: Path) -> None:
    made = job(tmp_path, stage__steps=3)
    written = json.loads((folder(made, finished(one, made)) / "config.json").read_text())
    assert written["reward_normalised"]["of"] == "the best answers of training rows"
    assert written["reward_normalised"]["answers"] == 11
    assert abs(written["reward_normalised"]["mean"]) < 1e-6


def test_with_lora_only_adapters_and_the_head_are_trained_and_saved(one: Pool, tmp_path: Path, learnt: Path) -> None:
    from safetensors.torch import load_file

    made = job(tmp_path, stage__model=str(learnt), stage__lora=LORA, stage__steps=3, checkpoint={"every_steps": 2})
    ended = finished(one, made)
    before, after = load_file(learnt / "model.safetensors"), load_file(folder(made, ended) / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "score.weight" in changed
    assert all("proj" in name or name == "score.weight" for name in changed)
    names = set(load_file(folder(made, ended, "adapter") / "adapter_model.safetensors"))
    assert any(name.endswith("score.weight") for name in names)
    assert all("lora_" in name or "score" in name for name in names)


def test_a_reward_model_goes_on_with_its_head_and_a_language_model_begins_with_zeros(
    one: Pool, tmp_path: Path, learnt: Path
) -> None:
    again = finished(one, job(tmp_path / "again", stage__model=str(learnt), stage__steps=1))
    assert abs(again.losses[1] - math.log(2)) > 1e-3
    talk = Job(tmp_path / "sft", jobs.spec(stage__steps=2), jobs.dialogues(8))
    start = folder(talk, finished(one, talk))
    made = job(tmp_path / "new", stage__model=str(start), stage__steps=1)
    made.rows = [row for row in made.rows if "margin" not in row]
    assert finished(one, made).losses[1] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("zero", [0, 3])
def test_a_loss_that_is_no_number_ends_the_job(two: Pool, tmp_path: Path, zero: int) -> None:
    changes: dict[str, Any] = {"stage__steps": 8, "checkpoint": {"every_steps": 2}, "resources": {"per_node": 2}}
    made = job(tmp_path, 16, **changes, deepspeed__zero=zero)
    for ended in two.run(reward_cases.attempt_with_nan, made, 7):
        assert ended.outcome == "Diverged"
        assert "the loss of step 4 is nan" in ended.message


def test_rows_that_are_too_long_are_refused_with_their_line(one: Pool, tmp_path: Path) -> None:
    made = job(tmp_path, stage__max_length=60)
    made.rows[4] = {"prompt": "cat " * 20, "chosen": "yes", "rejected": "no"}
    ended = one.run(jobs.attempt, made, 1)[0]
    assert ended.outcome == "InvalidData"
    assert "line 4: prompt and answer have" in ended.message
    cut = job(tmp_path / "cut", stage__max_length=120, stage__data={"train": "files/train", "truncate": True})
    cut.rows[4] = {"prompt": "cat " * 40, "chosen": "yes", "rejected": "no"}
    assert one.run(jobs.attempt, cut, 1)[0].outcome == "Finished"


@pytest.mark.parametrize(
    "changes", [{"stage__gradient_checkpointing": True}, {"stage__micro_batch": 2}, {"deepspeed__zero": 3}]
)
def test_how_it_is_computed_changes_no_loss(one: Pool, tmp_path: Path, changes: dict[str, Any]) -> None:
    plain = finished(one, job(tmp_path / "plain"))
    other = finished(one, job(tmp_path / "other", **changes))
    assert list(other.losses.values()) == pytest.approx(list(plain.losses.values()), rel=1e-5)


def test_a_tokenizer_that_pads_with_its_end_is_refused(tmp_path: Path) -> None:
    from worker.errors import BadSpec
    from worker.scores import check_padding
    from worker.tokenizers import bytes_tokenizer

    tokenizer = bytes_tokenizer()
    check_padding(tokenizer, "it")
    tokenizer.pad_token = "<|im_end|>"
    with pytest.raises(BadSpec, match=re.escape("pads with <|im_end|>, which also ends texts")):
        check_padding(tokenizer, "it")


def test_a_language_model_is_no_reward_model(one: Pool, tmp_path: Path, learnt: Path) -> None:
    from tests.model.conftest import input_at
    from worker.errors import BadSpec
    from worker.scores import TokenRows, reward_model, token_rows, value_model, values

    talk = Job(tmp_path / "sft", jobs.spec(stage__steps=1), jobs.dialogues(8))
    start = folder(talk, finished(one, talk))
    with pytest.raises(BadSpec, match=r"stage.reward.terms.0.model: it is no reward model: it has no score head"):
        reward_model(input_at(start), "it", tmp_path, torch.float32, [], path="stage.reward.terms.0.model")
    model, tokenizer = reward_model(input_at(learnt), "it", tmp_path, torch.float32, [])
    assert not model.training
    batch: TokenRows = token_rows(
        [ids for row in read(tmp_path, pairs(2), tokenizer) for ids in row.answers], pad_id=256
    )
    for where in (start, learnt):  # a critic may be made of either
        critic, _ = value_model(input_at(where), "it", tmp_path, torch.float32, [])
        found = values(critic, batch)
        assert found.shape == batch.input_ids.shape
        assert not found.any()
