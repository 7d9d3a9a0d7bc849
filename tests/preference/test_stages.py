"""The stages from their rows to their outputs: resumed to the bit, and the same however they are spread."""

import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.engine import jobs
from tests.engine.jobs import Ended, Job, Plan
from tests.engine.pool import Pool
from tests.preference.rows import judged, pairs
from tests.rl.ppo_jobs import deepspeed

STAGES = ["dpo", "orpo", "kto"]
LORA = {"rank": 4, "alpha": 8.0, "targets": "all-linear"}


def job(store: Path, stage: str, rows: int = 11, **changes: Any) -> Job:
    # 4 rows an update: the last one of an epoch has 3, and one rank has less to do.
    made: dict[str, Any] = {"stage__max_length": 160, "stage__steps": 6, "stage__beta": 0.5} | changes
    return Job(store, jobs.spec(stage, **made), (judged if stage == "kto" else pairs)(rows))


def finished(pool: Pool, made: Job) -> Ended:
    ended: Ended = pool.run(jobs.attempt, made, 1)[0]
    assert ended.outcome == "Finished", ended.message
    return ended


def folder(made: Job, ended: Ended, kind: str = "model") -> Path:
    return made.store / next(output["path"] for output in ended.outputs if output["kind"] == kind)


@pytest.mark.parametrize(("stage", "first"), [("dpo", math.log(2)), ("kto", 0.5)])
def test_training_begins_as_its_own_reference_and_goes_down(
    one: Pool, tmp_path: Path, stage: str, first: float
) -> None:
    made = job(tmp_path, stage, 18, stage__steps=12, evaluate={"held_out": 0.34, "every_steps": 6})
    made.rows = [{name: value for name, value in row.items() if name != "margin"} for row in made.rows]
    ended = finished(one, made)
    assert ended.losses[1] == pytest.approx(first, abs=1e-7)
    assert sum(ended.losses[step] for step in (10, 11, 12)) / 3 < first - 0.1
    assert ended.curve("train/accuracy")[1] == 0.5
    assert ended.curve("rewards/margin")[1] == 0.0
    assert sum(ended.curve("rewards/margin").values()) > 1.0
    assert ended.curve("logps/chosen")[1] < -10
    assert list(ended.curve("eval/loss")) == [0, 6, 12]
    assert ended.curve("eval/loss")[0] == pytest.approx(first, abs=1e-7)
    assert ended.curve("eval/accuracy")[0] == 0.5
    assert ended.curve("eval/rewards/margin")[12] != 0.0
    if stage == "kto":
        assert ended.curve("kto/kl")[1] == 0.0
        assert max(ended.curve("kto/kl").values()) > 0.01
        assert set(ended.curve("eval/kto/kl")) == {0, 6, 12}


def test_odds_ratio_optimization_tells_of_both_its_losses(one: Pool, tmp_path: Path) -> None:
    made = job(tmp_path, "orpo", stage__steps=12, evaluate={"held_out": 0.3})
    ended = finished(one, made)
    nats, odds = ended.curve("orpo/nll"), ended.curve("orpo/log_odds")
    assert nats[12] < nats[1] - 0.5
    assert odds[12] > odds[1]
    assert set(ended.curve("eval/orpo/nll")) == {0, 12}
    assert "ReferenceAsked" not in ended.events


@pytest.mark.parametrize("stage", STAGES)
def test_neither_ranks_nor_accumulation_change_a_loss(one: Pool, two: Pool, tmp_path: Path, stage: str) -> None:
    changes: dict[str, Any] = {"stage__batch": 8, "evaluate": {"held_out": 0.2, "every_steps": 3}}
    whole = finished(one, job(tmp_path / "whole", stage, 16, **changes, stage__micro_batch=8))
    assert stage != "kto" or max(whole.curve("kto/kl").values()) > 0.01
    summed = finished(one, job(tmp_path / "summed", stage, 16, **changes, stage__micro_batch=1))
    ranks = {"resources": {"per_node": 2}}
    spread = [
        finished(two, job(tmp_path / f"spread{zero}", stage, 16, **changes, **ranks, deepspeed=deepspeed(zero)))
        for zero in (0, 3)
    ]
    for other in (summed, *spread):
        for name in ("train/loss", "train/grad_norm", "rewards/margin", "eval/loss", "eval/accuracy"):
            assert list(other.curve(name).values()) == pytest.approx(list(whole.curve(name).values()), rel=1e-3), name
        # Before what rounds off is multiplied by steps at a high rate.
        assert other.losses[2] == pytest.approx(whole.losses[2], rel=1e-5)
        assert other.curve("train/grad_norm")[2] == pytest.approx(whole.curve("train/grad_norm")[2], rel=1e-4)


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("dpo", {}),
    "dpo, ZeRO 3, LoRA": ("dpo", {"stage__lora": LORA, "deepspeed__zero": 3}),
    "dpo, bf16": ("dpo", {"deepspeed": {"precision": "bf16", "zero": 0}}),
    "dpo, reference-free": ("dpo", {"stage__reference_free": True, "stage__length_normalised": True}),
    "orpo": ("orpo", {}),
    "kto": ("kto", {}),
    "kto, ZeRO 2": ("kto", {"deepspeed__zero": 2}),
}


@pytest.fixture(scope="module")
def base(one: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model to begin with."""
    made = Job(tmp_path_factory.mktemp("base"), jobs.spec(stage__steps=2), jobs.dialogues(8))
    return folder(made, finished(one, made))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stop_inside_an_accumulation_and_a_kill_after_it_end_in_the_same_bits(
    one: Pool, tmp_path: Path, base: Path, variant: str
) -> None:
    stage, changes = VARIANTS[variant]
    changes = {"checkpoint": {"every_steps": 2}, "evaluate": {"held_out": 0.3}, "stage__model": str(base)} | changes
    whole, broken = job(tmp_path / "whole", stage, **changes), job(tmp_path / "broken", stage, **changes)
    unbroken = finished(one, whole)
    # Looks at the stop flag: 11 for the reference, 3 for an evaluation (kto: 6), 4 an update (kto: 8).
    first, second = (30, 17) if stage == "kto" else (20, 9)
    lives = [
        one.run(jobs.attempt, broken, number, plan)[0]
        for number, plan in enumerate([Plan(stop_at=first), Plan(kill_at=second), Plan()], start=1)
    ]
    assert [ended.outcome for ended in lives] == ["Stopped", "Killed", "Finished"], lives[-1].message
    assert all(ended.resumed_from for ended in lives[1:])
    assert {**lives[0].losses, **lives[1].losses, **lives[2].losses} == unbroken.losses
    asked = stage != "orpo" and "reference-free" not in variant
    assert ["ReferenceAsked" in ended.events for ended in lives] == [asked, False, False]
    for kind in [output["kind"] for output in unbroken.outputs]:
        files = [folder(made, ended, kind) for made, ended in ((whole, unbroken), (broken, lives[-1]))]
        for file in files[0].glob("*.safetensors"):
            assert file.read_bytes() == (files[1] / file.name).read_bytes(), file.name


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_two_ranks_resume_to_the_last_bit(two: Pool, tmp_path: Path, stage: str) -> None:
    changes: dict[str, Any] = {"checkpoint": {"every_steps": 2}, "evaluate": {"held_out": 0.3}}
    changes |= {"resources": {"per_node": 2}, "deepspeed__zero": 2}
    whole, broken = job(tmp_path / "whole", stage, **changes), job(tmp_path / "broken", stage, **changes)
    unbroken = finished(two, whole)
    for number, plan in enumerate([Plan(kill_at=20), Plan()], start=1):
        ended = two.run(jobs.attempt, broken, number, plan)[0]
    assert ended.outcome == "Finished"
    assert ended.resumed_from
    files = [folder(made, end) / "model.safetensors" for made, end in ((whole, unbroken), (broken, ended))]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_job_of_few_steps_asks_the_reference_of_the_rows_that_it_meets(one: Pool, tmp_path: Path) -> None:
    made = job(tmp_path, "dpo", 40, stage__steps=2)
    assert finished(one, made).losses[1] > 0
    ended = one.run(jobs.attempt, job(tmp_path / "short", "dpo", 40, stage__steps=2), 1, Plan(stop_at=8 + 8 + 1))[0]
    assert ended.outcome == "Finished"  # looked 8 times for the reference, and 8 times while it learnt
    met = job(tmp_path / "met", "dpo", 40, stage__steps=2)
    assert one.run(jobs.attempt, met, 1, Plan(stop_at=8 + 8))[0].outcome == "Stopped"


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_handed_over_is_a_language_model_and_with_lora_its_adapter(
    one: Pool, tmp_path: Path, base: Path, stage: str
) -> None:
    made = job(tmp_path, stage, stage__model=str(base), stage__lora=LORA, stage__steps=2)
    ended = finished(one, made)
    model: Any = AutoModelForCausalLM.from_pretrained(folder(made, ended))
    assert not model.training
    before, after = (load_file(where / "model.safetensors") for where in (base, folder(made, ended)))
    assert any(not before[name].equal(after[name]) for name in before)
    assert (folder(made, ended, "adapter") / "adapter_model.safetensors").exists()


def test_dropout_is_off_so_that_the_model_is_compared_with_itself(one: Pool, tmp_path: Path) -> None:
    made = job(tmp_path, "dpo", stage__model={"config": jobs.LLAMA | {"attention_dropout": 0.3}}, stage__steps=1)
    made.rows = [row for row in made.rows if "margin" not in row]
    assert finished(one, made).losses[1] == pytest.approx(math.log(2), abs=1e-7)


def test_a_margin_of_a_row_is_asked_of_its_rewards(one: Pool, tmp_path: Path) -> None:
    made = job(tmp_path, "dpo", stage__steps=1)
    made.rows = [{"prompt": "a", "chosen": f"yes {n}", "rejected": f"no {n}", "margin": 0.7} for n in range(4)]
    assert finished(one, made).losses[1] == pytest.approx(math.log1p(math.exp(0.7)), abs=1e-6)


def refused(pool: Pool, made: Job) -> str:
    ended: Ended = pool.run(jobs.attempt, made, 1)[0]
    assert ended.outcome == "InvalidData"
    assert not ended.losses
    return ended.message


@pytest.mark.parametrize("stage", ["dpo", "orpo"])
def test_answers_of_the_same_tokens_are_refused_with_their_line(one: Pool, tmp_path: Path, stage: str) -> None:
    made = job(tmp_path, stage)
    made.rows[2] = {"prompt": "a", "answers": [{"text": "yes", "score": 1}, {"text": "yes", "score": 0}]}
    assert "line 3: the chosen answer and the rejected one are the same tokens" in refused(one, made)


@pytest.mark.parametrize(("label", "said"), [(True, "true"), (False, "false")])
def test_answers_of_one_label_alone_are_refused(one: Pool, tmp_path: Path, label: bool, said: str) -> None:
    made = job(tmp_path, "kto")
    made.rows = [row | {"label": label} for row in made.rows]
    assert f"stage.data.train: every row has `label: {said}`" in refused(one, made)


def test_answers_to_one_prompt_alone_are_refused(one: Pool, tmp_path: Path) -> None:
    made = job(tmp_path, "kto")
    made.rows = [row | {"prompt": "the same"} for row in made.rows]
    assert "stage.data.train: all rows have the same prompt" in refused(one, made)


def test_a_checkpoint_of_other_rows_is_not_gone_on_from(one: Pool, tmp_path: Path) -> None:
    made = job(tmp_path, "dpo", checkpoint={"every_steps": 1})
    assert one.run(jobs.attempt, made, 1, Plan(kill_at=22))[0].checkpoints
    made.rows = made.rows[:-2]
    ended = one.run(jobs.attempt, made, 2)[0]
    assert ended.outcome == "InvalidData"
    assert "submit the job anew" in ended.message
