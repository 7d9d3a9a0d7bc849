"""A job stopped or killed at any micro-step goes on as if nothing had been: losses equal to the last digit."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.engine import cases, jobs
from tests.engine.jobs import Ended, Job, Plan
from tests.engine.pool import Pool

# 7 rows, 4 an update: epochs of 2 updates, the second of 3 rows. 4 micro-batches of one row: an accumulation of 4.
ROWS = jobs.dialogues(7)
LOOKS = 30  # looks at the stop flag that a job of 8 such updates takes


def job(store: Path, stage: str = "sft", **changes: Any) -> Job:
    changes = {"stage__steps": 8, "checkpoint": {"every_steps": 3}} | changes
    rows = ROWS if stage == "sft" else jobs.texts(12)
    return Job(store, jobs.spec(stage, **changes), rows)


def lived_through(pool: Pool, job: Job, plans: list[Plan]) -> tuple[dict[int, float], list[Ended]]:
    """The losses of a job whose attempts met `plans` (and then one without trouble): of each step the last one told."""
    losses: dict[int, float] = {}
    lives = []
    for number, plan in enumerate([*plans, Plan()], start=1):
        ended = pool.run(jobs.attempt, job, number, plan)[0]
        lives.append(ended)
        assert ended.outcome in ("Finished", "Killed", "Stopped"), ended.message
        kept = ended.resumed_from or 0
        losses = {step: loss for step, loss in losses.items() if step <= kept} | ended.losses
        if ended.outcome == "Finished":
            break
    assert lives[-1].outcome == "Finished"
    return losses, lives


VARIANTS: dict[str, dict[str, Any]] = {
    "ZeRO 0": {},
    "ZeRO 1": {"deepspeed__zero": 1},
    "ZeRO 2": {"deepspeed__zero": 2},
    "ZeRO 3": {"deepspeed__zero": 3},
    "ZeRO 2, offloaded": {"deepspeed": {"precision": "fp32", "zero": 2, "offload": "cpu"}},
    "packed": {
        "stage__packing": True,
        "stage__max_length": 160,
        "stage__batch": 2,
        "stage__micro_batch": 1,
        "stage__steps": 12,
        "deepspeed__zero": 2,
    },
    "bf16": {"deepspeed": {"precision": "bf16", "zero": 0}},
    "bf16, ZeRO 2": {"deepspeed": {"precision": "bf16", "zero": 2}},
    "bf16, ZeRO 3": {"deepspeed": {"precision": "bf16", "zero": 3}},
    "dropout": {"stage__model": {"config": jobs.LLAMA | {"attention_dropout": 0.2}}},
    "checkpointing": {"stage__gradient_checkpointing": True},
    "frozen, ZeRO 3": {"stage__freeze": ["*embed_tokens*", "model.layers.0.*"], "deepspeed__zero": 3},
    "lion with groups, ZeRO 2": {
        "stage__optimizer": {
            "name": "lion",
            "lr": 0.002,
            "groups": [{"match": ["*norm*"], "lr": 0.5}],
            "layer_decay": 0.8,
        },
        "deepspeed__zero": 2,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stop_inside_an_accumulation_and_a_kill_after_it_change_no_digit(
    one: Pool, tmp_path: Path, variant: str
) -> None:
    changes = VARIANTS[variant]
    whole, _ = lived_through(one, job(tmp_path / "whole", **changes), [])
    # Packed updates have fewer rows, so fewer moments to stop at.
    plans = [Plan(stop_at=4), Plan(kill_at=6)] if "packed" in variant else [Plan(stop_at=7), Plan(kill_at=13)]
    broken, lives = lived_through(one, job(tmp_path / "broken", **changes), plans)
    assert [ended.outcome for ended in lives] == ["Stopped", "Killed", "Finished"]
    assert broken == whole
    assert lives[1].resumed_from == lives[0].checkpoints[-1]


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_two_ranks_resume_to_the_last_digit(two: Pool, tmp_path: Path, zero: int) -> None:
    changes: dict[str, Any] = {"resources": {"per_node": 2}, "deepspeed__zero": zero}
    whole, _ = lived_through(two, job(tmp_path / "whole", **changes), [])
    broken, lives = lived_through(two, job(tmp_path / "broken", **changes), [Plan(stop_at=4), Plan(kill_at=9)])
    assert len(lives) == 3
    assert broken == whole


def test_pretraining_resumes_to_the_last_digit(one: Pool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"stage__max_length": 64, "stage__batch": 2, "stage__steps": 12}
    whole, _ = lived_through(one, job(tmp_path / "whole", "pretrain", **changes), [])
    plans = [Plan(stop_at=6), Plan(kill_at=12)]
    broken, lives = lived_through(one, job(tmp_path / "broken", "pretrain", **changes), plans)
    assert len(lives) == 3
    assert broken == whole


def test_a_lora_job_resumes_to_the_last_digit_with_dropout_in_its_adapters(one: Pool, tmp_path: Path) -> None:
    base = one.run(jobs.attempt, job(tmp_path / "base", stage__steps=1), 1)[0]
    folder = tmp_path / "base" / base.outputs[0]["path"]
    changes: dict[str, Any] = {
        "stage__model": str(folder),
        "stage__lora": {"rank": 4, "alpha": 8.0, "dropout": 0.1},
        "stage__steps": 5,
        "checkpoint": {"every_steps": 2},
    }
    for zero in (0, 2, 3):
        changes |= {"deepspeed__zero": zero, "stage__max_length": 128}
        whole, _ = lived_through(one, job(tmp_path / f"whole{zero}", **changes), [])
        plans = [Plan(stop_at=6), Plan(kill_at=9)]
        broken, lives = lived_through(one, job(tmp_path / f"broken{zero}", **changes), plans)
        assert len(lives) == 3
        assert broken == whole
        sealed = next((tmp_path / f"broken{zero}").glob("jobs/*/a1/checkpoints/*"))
        assert sum(f.stat().st_size for f in sealed.rglob("*.pt")) < 400_000, "the frozen weights are in it"


def test_an_epochs_end_is_resumed_with_the_next_epochs_first_row(one: Pool, tmp_path: Path) -> None:
    # Two epochs of two updates (4 + 3 micro-batches); a checkpoint after the second update lies between the epochs.
    changes: dict[str, Any] = {"stage__steps": None, "stage__epochs": 2, "checkpoint": {"every_steps": 2}}
    whole, _ = lived_through(one, job(tmp_path / "whole", **changes), [])
    broken, lives = lived_through(one, job(tmp_path / "broken", **changes), [Plan(kill_at=9)])
    assert lives[-1].resumed_from == 2
    assert sorted(lives[-1].losses) == [3, 4]
    assert broken == whole


def test_a_job_killed_between_its_last_step_and_its_outputs_still_hands_them_over(one: Pool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"stage__steps": 3, "evaluate": {"held_out": 0.3}}
    made = job(tmp_path, **changes)
    first = one.run(jobs.attempt, made, 1)[0]
    assert first.checkpoints == [3]
    second = one.run(jobs.attempt, made, 2)[0]
    assert second.outcome == "Finished"
    assert second.resumed_from == 3
    assert second.losses == {}
    assert second.curve("eval/loss") == {}, "it was evaluated already"
    assert [o["sha256"] for o in second.outputs] != []


def test_a_damaged_checkpoint_is_passed_over_with_an_event(one: Pool, tmp_path: Path) -> None:
    made = job(tmp_path, checkpoint={"every_steps": 2})
    whole, _ = lived_through(one, job(tmp_path / "whole", checkpoint={"every_steps": 2}), [])
    killed = one.run(jobs.attempt, made, 1, Plan(kill_at=20))[0]
    newest = sorted(tmp_path.glob("jobs/*/a1/checkpoints/*"))[-1]
    victim = max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    ended = one.run(jobs.attempt, made, 2)[0]
    assert "CheckpointDamaged" in ended.events
    assert ended.resumed_from == killed.checkpoints[-2]
    assert {**killed.losses, **ended.losses} == whole


def test_a_stop_before_the_first_step_saves_nothing_and_the_next_attempt_starts_afresh(
    one: Pool, tmp_path: Path
) -> None:
    whole, _ = lived_through(one, job(tmp_path / "whole"), [])
    broken, lives = lived_through(one, job(tmp_path / "broken"), [Plan(stop_at=2)])
    assert lives[0].checkpoints == []
    assert lives[1].resumed_from == 0
    assert broken == whole


def test_other_circumstances_are_told(one: Pool, tmp_path: Path) -> None:
    made = job(tmp_path)
    one.run(jobs.attempt, made, 1, Plan(stop_at=9))
    folder = next(tmp_path.glob("jobs/*/a1/checkpoints/*"))
    stored = json.loads((folder / "training.json").read_text())
    others = {"torch": "1.0", "tokenizers": "0.1", "numpy": "1.1", "peft": "0.2", "operator": "0.0"}
    stored["circumstances"] |= others
    (folder / "training.json").write_text(json.dumps(stored))
    _reseal(folder)
    ended = one.run(jobs.attempt, made, 2)[0]
    for name, version in others.items():
        assert f"{name}: {version} -> " in ended.events["NotExact"]
    shutil.rmtree(folder.parents[2] / "a2")  # whose checkpoints are newer
    stored["circumstances"]["world"] = 4
    (folder / "training.json").write_text(json.dumps(stored))
    _reseal(folder)
    ended = one.run(jobs.attempt, Job(tmp_path, made.spec, made.rows), 2)[0]
    assert ended.outcome == "InvalidSpec"
    assert "4 ranks" in ended.message


def test_a_number_that_is_given_again_goes_on_with_its_curves(one: Pool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"stage__tensorboard": True}
    whole, _ = lived_through(one, job(tmp_path / "whole", **changes), [])
    made = job(tmp_path / "again", **changes)
    assert one.run(jobs.attempt, made, 1, Plan(stop_at=9))[0].outcome == "Stopped"
    # As after the restore of a database that knows nothing of the first.
    again = one.run(jobs.attempt, made, 1)[0]
    assert again.outcome == "Finished", again.message
    assert again.resumed_from
    assert again.losses == {step: loss for step, loss in whole.items() if step > again.resumed_from}


def test_a_checkpoint_of_another_model_is_passed_over_with_an_event(one: Pool, tmp_path: Path) -> None:
    base = one.run(jobs.attempt, job(tmp_path / "base", stage__steps=1), 1)[0]
    made = job(tmp_path, stage__model=str(tmp_path / "base" / base.outputs[0]["path"]))
    one.run(jobs.attempt, made, 1, Plan(stop_at=9))
    folder = next(tmp_path.glob("jobs/*/a1/checkpoints/*"))
    stored = json.loads((folder / "training.json").read_text())
    assert set(stored["models"]) == {"stage.model"}
    stored["models"]["stage.model"] = "0" * 64
    (folder / "training.json").write_text(json.dumps(stored))
    _reseal(folder)
    ended = one.run(jobs.attempt, made, 2)[0]
    assert (ended.outcome, ended.resumed_from) == ("Finished", 0)
    assert "was made with another model at stage.model" in ended.events["CheckpointOfOthers"]


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_a_checkpoint_of_the_release_before_goes_on(one: Pool, tmp_path: Path, zero: int) -> None:
    whole, _ = lived_through(one, job(tmp_path / "whole", deepspeed__zero=zero), [])
    made = job(tmp_path / "broken", deepspeed__zero=zero)
    first = one.run(cases.attempt_of_a_release_without_groups, made, Plan(stop_at=9))[0]
    second = one.run(jobs.attempt, made, 2)[0]
    assert (first.outcome, second.outcome) == ("Stopped", "Finished"), second.message
    assert first.losses | second.losses == whole


def test_other_tokens_from_the_same_file_are_told(one: Pool, tmp_path: Path) -> None:
    made = job(tmp_path, stage__steps=3, checkpoint={"every_steps": 1})
    one.run(jobs.attempt, made, 1, Plan(kill_at=6))
    ended = one.run(cases.attempt_with_another_tokenizer, made, 2)[0]
    assert "the training data is not what it was" in ended.events["NotExact"]


def _reseal(folder: Path) -> None:
    from worker.contract import manifest

    (folder / manifest.MANIFEST).write_bytes(manifest.describe(folder).encode())


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_number_of_stops_and_kills_at_random_micro_steps_change_no_digit(
    one: Pool, tmp_path: Path, variant: str, seed: int
) -> None:
    rng = random.Random(f"{variant} {seed}")
    changes = VARIANTS[variant]
    whole, _ = lived_through(one, job(tmp_path / "whole", **changes), [])
    plans = [Plan(**{rng.choice(["stop_at", "kill_at"]): rng.randint(1, LOOKS - 5)}) for _ in range(rng.randint(1, 6))]
    broken, _ = lived_through(one, job(tmp_path / "broken", **changes), plans)
    assert broken == whole
