"""The loop: evaluation, stops, divergence, memory, data without a trained token, TensorBoard, outputs."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from tests.engine import cases, jobs
from tests.engine.jobs import Job, Plan
from tests.engine.pool import Pool


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_the_preflight_leaves_everything_bit_for_bit(two: Pool, tmp_path: Path, zero: int, precision: str) -> None:
    made = jobs.spec(deepspeed={"zero": zero, "precision": precision}, resources={"per_node": 2})
    job = Job(tmp_path, made, jobs.dialogues(12))
    for steps in (0, 2):
        assert two.run(cases.preflight_changes, job, steps) == [[], []]


def test_the_preflight_leaves_an_offloaded_optimizer_bit_for_bit(one: Pool, tmp_path: Path) -> None:
    made = jobs.spec(deepspeed={"zero": 2, "precision": "fp32", "offload": "cpu"})
    assert one.run(cases.preflight_changes, Job(tmp_path, made, jobs.dialogues(12)), 2) == [[]]


def test_the_preflight_takes_the_longest_rows(one: Pool, tmp_path: Path) -> None:
    rows = jobs.dialogues(9)
    rows[6]["messages"][1]["content"] = "tree " * 18
    lengths = one.run(cases.longest_row, Job(tmp_path, jobs.spec(), rows))[0]
    assert lengths[0] == max(lengths[1:])


def test_memory_that_does_not_suffice_tells_what_to_change(one: Pool, tmp_path: Path) -> None:
    made = jobs.spec(stage__micro_batch=4, stage__max_length=128)
    outcome, message = one.run(cases.attempt_without_memory, Job(tmp_path, made, jobs.dialogues(9)))[0]
    assert outcome == "OutOfMemory"
    assert re.search(r"a micro-batch of 4 rows x \d+ tokens", message)
    assert "stage.micro_batch: 2 (now 4" in message
    assert "stage.gradient_checkpointing: true" in message
    assert "stage.max_length: 64" in message


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_a_loss_that_is_no_number_ends_the_job_and_keeps_the_last_good_checkpoint(
    two: Pool, tmp_path: Path, zero: int
) -> None:
    changes = {"deepspeed__zero": zero, "stage__steps": 8, "checkpoint": {"every_steps": 2}}
    job = Job(tmp_path, jobs.spec(**changes, resources={"per_node": 2}), jobs.dialogues(16))
    for ended in two.run(cases.attempt_with_nan, job, 7):  # at the 7th micro-batch of rank 1 alone: in step 4
        assert ended.outcome == "Diverged"
        assert "the loss of step 4 is nan" in ended.message
        assert "the checkpoint of step 2 is kept" in ended.message
    assert sorted(p.name for p in tmp_path.glob("jobs/*/a1/checkpoints/*")) == ["step-000000002"]
    assert not list(tmp_path.glob("jobs/*/a1/outputs/*"))


@pytest.mark.parametrize("deepspeed", [{"zero": 0}, {"zero": 2}, {"zero": 3}, {"zero": 1, "precision": "bf16"}])
def test_a_gradient_that_is_no_number_ends_the_job(one: Pool, tmp_path: Path, deepspeed: dict[str, Any]) -> None:
    job = Job(tmp_path, jobs.spec(deepspeed={"precision": "fp32"} | deepspeed), jobs.dialogues(9))
    ended = one.run(cases.attempt_with_infinite_gradient, job)[0]
    assert ended.outcome == "Diverged"
    assert "the gradient's norm of step 1 is" in ended.message


def test_a_learning_rate_that_is_far_too_high_hands_over_no_broken_model(one: Pool, tmp_path: Path) -> None:
    settings = {"lr": 10.0, "warmup": 0.0, "clip": 0.0, "weight_decay": 1.0, "schedule": "constant"}
    job = Job(tmp_path, jobs.spec(stage__optimizer=settings, stage__steps=30), jobs.dialogues(9))
    ended = one.run(jobs.attempt, job, 1)[0]
    assert ended.outcome in ("Diverged", "Finished")
    assert all(math.isfinite(loss) for loss in ended.losses.values())


@pytest.mark.parametrize(
    ("deepspeed", "said"),
    [({"precision": "bf16"}, True), ({"precision": "bf16", "zero": 1}, False), ({"precision": "fp32"}, False)],
)
def test_a_zero_stage_that_is_raised_is_told(one: Pool, tmp_path: Path, deepspeed: dict[str, Any], said: bool) -> None:
    job = Job(tmp_path, jobs.spec(deepspeed={"zero": 0} | deepspeed, stage__steps=1), jobs.dialogues(9))
    ended = one.run(jobs.attempt, job, 1)[0]
    assert ended.outcome == "Finished"
    assert ("runs as stage 1" in ended.events.get("ZeroRaised", "")) is said


def test_a_job_does_not_wait_for_the_compiler_of_torch_to_load(one: Pool, tmp_path: Path) -> None:
    job = Job(tmp_path, jobs.spec(stage__steps=1, deepspeed={"zero": 1}), jobs.dialogues(9))
    assert one.run(jobs.attempt, job, 1)[0].outcome == "Finished"
    assert one.run(cases.compiler_is_loaded) == [False]


@pytest.mark.parametrize("who", [0, 1])
def test_all_ranks_stop_at_the_micro_step_at_which_one_of_them_was_asked(two: Pool, tmp_path: Path, who: int) -> None:
    job = Job(tmp_path, jobs.spec(stage__steps=8, resources={"per_node": 2}), jobs.dialogues(16))
    ended = two.run(jobs.attempt, job, 1, Plan(stop_at=8, only_rank=who))
    assert [e.outcome for e in ended] == ["Stopped", "Stopped"]
    assert ended[0].checkpoints == [3]  # in the 4th step's accumulation of 2


def test_a_stop_that_discards_saves_nothing(one: Pool, tmp_path: Path) -> None:
    job = Job(tmp_path, jobs.spec(stage__steps=8), jobs.dialogues(9))
    ended = one.run(jobs.attempt, job, 1, Plan(stop_at=9, stop="discard"))[0]
    assert ended.outcome == "Stopped"
    assert ended.checkpoints == []
    assert not list(tmp_path.glob("jobs/*/a1/checkpoints/*"))


def test_evaluation_comes_before_the_first_step_now_and_then_and_at_the_end(one: Pool, tmp_path: Path) -> None:
    changes = {"stage__steps": 5, "evaluate": {"data": "files/eval", "every_steps": 2}}
    job = Job(tmp_path, jobs.spec(**changes), jobs.dialogues(9), held_out=jobs.dialogues(5, seed=2))
    ended = one.run(jobs.attempt, job, 1)[0]
    curve = ended.curve("eval/loss")
    assert list(curve) == [0, 2, 4, 5]
    assert curve[5] < curve[0]
    perplexity = ended.curve("eval/perplexity")
    assert perplexity == pytest.approx({step: math.exp(loss) for step, loss in curve.items()})


@pytest.mark.parametrize("zero", [0, 3])
def test_evaluation_does_not_disturb_training_and_counts_tokens_over_all_ranks(
    one: Pool, two: Pool, tmp_path: Path, zero: int
) -> None:
    rows, rest = jobs.dialogues(16), jobs.dialogues(5, seed=2)
    changes: dict[str, Any] = {
        "stage__model": {"config": jobs.LLAMA | {"attention_dropout": 0.2}},
        "resources": {"per_node": 2},
        "deepspeed__zero": zero,
    }
    evaluate = {"data": "files/eval", "every_steps": 1}
    without = two.run(jobs.attempt, Job(tmp_path / "without", jobs.spec(**changes), rows), 1)[0]
    made = Job(tmp_path / "with", jobs.spec(**changes, evaluate=evaluate), rows, held_out=rest)
    ended = two.run(jobs.attempt, made, 1)[0]
    assert ended.losses == without.losses
    changes |= {"resources": {"per_node": 1}, "stage__micro_batch": 4}
    alone = Job(tmp_path / "alone", jobs.spec(**changes, evaluate=evaluate), rows, held_out=rest)
    expected = one.run(jobs.attempt, alone, 1)[0].curve("eval/loss")[0]
    assert ended.curve("eval/loss")[0] == pytest.approx(expected, rel=1e-5)


def test_each_micro_batch_trained_or_held_out_is_a_sign_of_progress(one: Pool, tmp_path: Path) -> None:
    job = Job(tmp_path, jobs.spec(stage__steps=1, evaluate={"data": "files/eval"}), jobs.dialogues(4))
    job.held_out = jobs.dialogues(6, seed=2)
    said = one.run(cases.attempt_that_always_signs, job)[0]
    signs = [m.keys() <= {"kind", "at", "metrics", "mark"} and m["mark"] for m in said if m["kind"] == "report"]
    # Two evaluations of 6 micro-batches, and an update of 4.
    assert sum(signs) >= 2 * 6 + 4


def test_a_job_for_gpus_does_not_train_on_the_processor_instead(one: Pool, tmp_path: Path) -> None:
    job = Job(tmp_path, jobs.spec(resources={"accelerator": "nvidia.com/gpu"}), jobs.dialogues(4))
    ended = one.run(jobs.attempt, job, 1)[0]
    assert ended.outcome == "InvalidSpec"
    assert ended.message.startswith("resources.accelerator: 1 GPUs a node are asked for, and this machine has 0")


def test_a_stop_during_an_evaluation_leaves_it_to_the_next_attempt(one: Pool, tmp_path: Path) -> None:
    changes = {"stage__steps": 4, "evaluate": {"data": "files/eval", "every_steps": 2}}
    job = Job(tmp_path, jobs.spec(**changes), jobs.dialogues(8), held_out=jobs.dialogues(6, seed=2))
    # 6 looks of the evaluation before step 1, 8 of two steps of 4 micro-batches, then the evaluation at step 2.
    first = one.run(jobs.attempt, job, 1, Plan(stop_at=16))[0]
    assert first.checkpoints == [2]
    assert list(first.curve("eval/loss")) == [0]
    second = one.run(jobs.attempt, job, 2)[0]
    assert list(second.curve("eval/loss")) == [2, 4]


def test_every_update_reports_the_metrics_of_the_contract(one: Pool, tmp_path: Path) -> None:
    ended = one.run(jobs.attempt, Job(tmp_path, jobs.spec(checkpoint={"every_steps": 2}), jobs.dialogues(8)), 1)[0]
    names = ["loss", "lr", "grad_norm", "tokens", "tokens_per_second"]
    for name in [f"train/{n}" for n in names] + [f"time/{n}" for n in ("data", "forward", "backward", "step")]:
        assert list(ended.curve(name)) == [1, 2, 3, 4], name
    assert list(ended.curve("time/save")) == [2, 4]
    reports = [m for m in ended.said if m["kind"] == "report"]
    assert {m.get("activity") for m in reports} >= {"loading", "training", "saving"}
    last = [m for m in reports if m.get("step") == 4][-1]
    assert last["steps"] == 4
    assert last["tokens"] == sum(ended.curve("train/tokens").values())


def test_steps_go_round_the_epochs_and_epochs_leave_no_row_out(one: Pool, tmp_path: Path) -> None:
    rows = jobs.dialogues(7)
    epochs = Job(tmp_path / "epochs", jobs.spec(stage__steps=None, stage__epochs=3), rows)
    ended = one.run(jobs.attempt, epochs, 1)[0]
    tokens = list(ended.curve("train/tokens").values())
    assert len(tokens) == 6  # 4 rows and 3 rows, three times
    assert tokens[0] + tokens[1] == tokens[2] + tokens[3] == tokens[4] + tokens[5]
    assert tokens[:2] != tokens[2:4], "each epoch has an order of its own"
    steps = Job(tmp_path / "steps", jobs.spec(stage__steps=5), rows)
    assert list(one.run(jobs.attempt, steps, 1)[0].curve("train/tokens").values()) == tokens[:5]


def test_data_without_one_trained_token_fails_before_the_first_step(one: Pool, tmp_path: Path) -> None:
    assert "not one token" in one.run(cases.feed_without_targets, Job(tmp_path, jobs.spec(), jobs.dialogues(3)))[0]


def test_tensorboard_has_each_step_once_over_all_attempts(one: Pool, tmp_path: Path) -> None:
    changes = {"stage__steps": 6, "stage__tensorboard": True, "checkpoint": {"every_steps": 2}}
    job = Job(tmp_path, jobs.spec(**changes), jobs.dialogues(8))
    first = one.run(jobs.attempt, job, 1, Plan(kill_at=15))[0]
    assert list(first.losses) == [1, 2, 3]
    second = one.run(jobs.attempt, job, 2)[0]
    assert second.resumed_from == 2
    points = one.run(cases.tensorboard_points, str(tmp_path / "jobs" / job.name / "a2" / "tensorboard"), "train/loss")[
        0
    ]
    expected = first.losses | second.losses
    assert points == [(step, pytest.approx(expected[step], rel=1e-6)) for step in range(1, 7)]


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_the_model_that_is_handed_over_is_the_one_that_was_trained(
    one: Pool, two: Pool, tmp_path: Path, zero: int
) -> None:
    changes: dict[str, Any] = {
        "deepspeed__zero": zero,
        "resources": {"per_node": 2},
        "evaluate": {"data": "files/eval"},
    }
    rest = jobs.dialogues(5, seed=2)
    job = Job(tmp_path, jobs.spec(**changes), jobs.dialogues(16), held_out=rest)
    ended = two.run(jobs.attempt, job, 1)[0]
    again = jobs.spec(
        stage__model=str(tmp_path / ended.outputs[0]["path"]), stage__steps=1, evaluate=changes["evaluate"]
    )
    reloaded = one.run(jobs.attempt, Job(tmp_path, again, jobs.dialogues(16), held_out=rest, name="job-again"), 1)[0]
    assert reloaded.curve("eval/loss")[0] == pytest.approx(ended.curve("eval/loss")[4], rel=1e-5)
