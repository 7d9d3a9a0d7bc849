"""The same data gives the same gradient and losses, however it is spread over ranks, stages and micro-batches."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine import cases, jobs
from tests.engine.pool import Pool


def losses(pool: Pool, job: jobs.Job) -> list[float]:
    ended = pool.run(jobs.attempt, job, 1)[0]
    assert ended.outcome == "Finished", ended.message
    return list(ended.losses.values())


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5


@pytest.mark.parametrize("zero", [0, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_two_ranks_with_uneven_samples_give_the_gradient_of_one_rank(
    one: Pool, two: Pool, tmp_path: Path, zero: int, micro_batch: int
) -> None:
    rows = jobs.dialogues(7, seed=3)  # of 8 rows a batch: one rank has less to do
    rows[0]["messages"][1]["content"] = "cat " * 20
    alone = jobs.Job(tmp_path, jobs.spec(stage__batch=8, stage__micro_batch=8), rows)
    shape = {"stage__batch": 8, "stage__micro_batch": micro_batch, "resources": {"per_node": 2}}
    spread = jobs.Job(tmp_path, jobs.spec(**shape, deepspeed__zero=zero), rows)
    expected = one.run(cases.gradient, alone)[0]
    found = two.run(cases.gradient, spread)[0]
    assert cosine(expected, found) > 1 - 1e-6
    assert max(map(abs, found)) == pytest.approx(max(map(abs, expected)), rel=1e-4)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_every_zero_stage_gives_the_losses_of_torch_alone(
    one: Pool, two: Pool, tmp_path: Path, zero: int, world: int
) -> None:
    settings = {"lr": 0.01, "weight_decay": 0.1, "warmup": 2.0, "clip": 0.5}
    made: dict[str, Any] = {"stage__optimizer": settings, "stage__steps": 5, "deepspeed__zero": zero}
    rows = jobs.dialogues(10)
    job = jobs.Job(tmp_path, jobs.spec(**made, resources={"per_node": world}), rows)
    expected = one.run(cases.plain_losses, jobs.Job(tmp_path, jobs.spec(**made), rows))[0]
    ended = (one if world == 1 else two).run(jobs.attempt, job, 1)[0]
    assert ended.outcome == "Finished", ended.message
    assert list(ended.losses.values()) == pytest.approx([loss for loss, _ in expected], rel=1e-5)
    # The norm before clipping is torch's; that the next losses agree says that the clipped gradient is too.
    assert list(ended.curve("train/grad_norm").values()) == pytest.approx([norm for _, norm in expected], rel=1e-4)
    assert all(norm > 0.5 for _, norm in expected), "nothing was clipped: the test shows nothing"


def test_clipping_off_is_off(one: Pool, tmp_path: Path) -> None:
    for zero in (0, 2):
        settings = {"lr": 0.01, "warmup": 0.0, "clip": 0.0}
        job = jobs.Job(tmp_path, jobs.spec(stage__optimizer=settings, deepspeed__zero=zero), jobs.dialogues(10))
        expected = one.run(cases.plain_losses, job)[0]
        assert losses(one, job) == pytest.approx([loss for loss, _ in expected], rel=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_accumulation_changes_nothing(one: Pool, tmp_path: Path, packing: bool) -> None:
    rows = jobs.dialogues(11)
    found = [
        losses(one, jobs.Job(tmp_path, jobs.spec(stage__micro_batch=n, stage__packing=packing), rows))
        for n in (1, 2, 4)
    ]
    assert found[0] == pytest.approx(found[2], rel=1e-5)
    assert found[1] == pytest.approx(found[2], rel=1e-5)


def test_bf16_learns_like_fp32(one: Pool, tmp_path: Path) -> None:
    rows = jobs.dialogues(10)
    exact = losses(one, jobs.Job(tmp_path, jobs.spec(stage__steps=10), rows))
    for zero in (0, 2, 3):
        made = jobs.spec(stage__steps=10, deepspeed={"precision": "bf16", "zero": zero})
        assert losses(one, jobs.Job(tmp_path, made, rows)) == pytest.approx(exact, rel=0.03)


def test_offloading_the_optimizer_changes_nothing(one: Pool, tmp_path: Path) -> None:
    rows = jobs.dialogues(10)
    exact = losses(one, jobs.Job(tmp_path, jobs.spec(), rows))
    for zero in (1, 2, 3):
        made = jobs.spec(deepspeed={"precision": "fp32", "zero": zero, "offload": "cpu"})
        assert losses(one, jobs.Job(tmp_path, made, rows)) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_discarded_gradients_leave_no_trace(two: Pool, tmp_path: Path, zero: int, precision: str) -> None:
    made = jobs.spec(deepspeed={"precision": precision, "zero": zero}, resources={"per_node": 2})
    job = jobs.Job(tmp_path, made, jobs.dialogues(16))
    assert two.run(cases.losses_with_discards, job, True) == two.run(cases.losses_with_discards, job, False)
