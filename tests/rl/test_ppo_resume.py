"""A PPO stopped or killed anywhere goes on as if nothing had been: curves and models equal to the last digit."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine import jobs
from tests.engine.jobs import Ended, Plan
from tests.engine.pool import Pool
from tests.rl import ppo_jobs

TOLD = ("reward", "kl", "kl_coef", "policy_loss", "value_loss", "actor_grad_norm", "length")
# Everything that is carried from one iteration to the next: the KL's price, the rewards' spread, the average of the
# weights; two epochs of two minibatches; held-out prompts in between.
CHANGES: dict[str, Any] = {
    "stage__steps": 3,
    "stage__rollout": {"prompts": 12, "slots": 1, "max_new_tokens": 6},
    "stage__ppo": {
        "epochs": 2, "minibatches": 2, "ema": 0.9, "kl": {"coef": 0.1, "target": 0.05, "horizon": 100.0},
    },
    "stage__reward__scale": "running",
    "evaluate": {"held_out": 0.2, "every_steps": 2},
    "checkpoint": {"every_steps": 1},
}  # fmt: skip


def job(store: Path, **changes: Any) -> ppo_jobs.Job:
    return ppo_jobs.ppo(store, **CHANGES | changes)


def lived_through(pool: Pool, job: ppo_jobs.Job, plans: list[Plan]) -> tuple[dict[str, Any], list[Ended]]:
    """The curves of a job whose attempts met `plans` (and then one without trouble), and the hashes of its outputs."""
    kind = job.spec["stage"]["type"]
    curves: dict[str, dict[int, float]] = {name: {} for name in (*(f"{kind}/{name}" for name in TOLD), "eval/reward")}
    lives = []
    for number, plan in enumerate([*plans, Plan()], start=1):
        ended = pool.run(jobs.attempt, job, number, plan)[0]
        lives.append(ended)
        assert ended.outcome in ("Finished", "Killed", "Stopped"), ended.message
        kept = ended.resumed_from or 0
        for name, points in curves.items():
            curves[name] = {step: value for step, value in points.items() if step <= kept} | ended.curve(name)
        if ended.outcome == "Finished":
            break
    assert lives[-1].outcome == "Finished"
    return {**curves, "weights": weights(job, lives[-1])}, lives


def weights(job: ppo_jobs.Job, ended: Ended) -> dict[str, str]:
    """The hash of each output's weights."""
    from worker.contract.manifest import file_sha256

    files = {output["kind"]: (job.store / output["path"]).glob("*model.safetensors") for output in ended.outputs}
    return {kind: file_sha256(next(found)) for kind, found in files.items()}


@pytest.mark.parametrize("zero", [0, 2])
def test_a_stop_within_a_rollout_and_one_within_an_epoch_change_no_digit(one: Pool, tmp_path: Path, zero: int) -> None:
    whole, _ = lived_through(one, job(tmp_path / "whole", deepspeed__zero=zero), [])
    assert len(whole["ppo/reward"]) == 3 and set(whole["weights"]) == {"model", "ema", "critic"}
    # In the second of three chunks of a rollout; in the second epoch; killed in the next rollout; in the one after.
    plans = [Plan(stop_at=70), Plan(stop_at=78), Plan(kill_at=60), Plan(stop_at=100)]
    broken, lives = lived_through(one, job(tmp_path / "broken", deepspeed__zero=zero), plans)
    assert broken == whole
    parts = {m["checkpoint"].get("part", 0) for life in lives for m in life.said if m["kind"] == "checkpoint"}
    assert len(parts) > 2, "no stop fell within an iteration: the test shows nothing"


def test_two_ranks_resume_to_the_last_digit(two: Pool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"resources": {"per_node": 2}, "deepspeed__zero": 2}
    whole, _ = lived_through(two, job(tmp_path / "whole", **changes), [])
    plans = [Plan(stop_at=20, only_rank=1), Plan(stop_at=60)]
    broken, _ = lived_through(two, job(tmp_path / "broken", **changes), plans)
    assert broken == whole


SHORT: dict[str, Any] = {
    "stage__steps": 2,
    "stage__rollout": {"prompts": 4, "slots": 2, "max_new_tokens": 4, "sharded": "always"},
    "stage__ppo": {"minibatches": 2, "ema": 0.9},
    "evaluate": None,
}


def updates_done(lives: list[Ended], answers: int) -> int:
    """How many of an iteration's updates were done when a rank, which sampled so many answers, was first stopped."""
    first = next(m["checkpoint"] for life in lives for m in life.said if m["kind"] == "checkpoint")
    return int(first["part"]) - answers - 1


def test_two_ranks_whose_weights_lie_in_shards_sample_on_them_and_resume_to_the_last_digit(
    two: Pool, tmp_path: Path
) -> None:
    changes = SHORT | {"resources": {"per_node": 2}, "deepspeed": ppo_jobs.deepspeed(3), "stage__steps": 1}
    for name in ("whole", "broken"):  # each layer is gathered for every token
        ppo_jobs.actor_folder(tmp_path / name / "actor", layers=1)
    whole, _ = lived_through(two, job(tmp_path / "whole", **changes), [])
    broken, lives = lived_through(two, job(tmp_path / "broken", **changes), [Plan(stop_at=6)])
    assert broken == whole and updates_done(lives, 2) == 1


def test_adapters_in_bf16_that_learn_from_dialogues_too_resume_to_the_last_digit(one: Pool, tmp_path: Path) -> None:
    lora = {"rank": 4, "dropout": 0.1}
    changes: dict[str, Any] = {"stage__actor__lora": lora, "stage__critic__lora": lora}
    changes |= {"stage__ppo": SHORT["stage__ppo"] | {"ptx": 2.0}}
    changes |= {"deepspeed": {"precision": "bf16"}, "stage__data": {"prompts": "files/prompts", "ptx": "files/ptx"}}

    def made(store: Path) -> ppo_jobs.Job:
        return replace(job(store, **SHORT | changes), dialogues=jobs.dialogues(7, seed=3))

    whole, _ = lived_through(one, made(tmp_path / "whole"), [])
    broken, lives = lived_through(one, made(tmp_path / "broken"), [Plan(stop_at=20)])
    assert broken == whole and updates_done(lives, 4) == 1
    assert "adapter" in whole["weights"]


@pytest.mark.soak
@pytest.mark.parametrize("zero", [0, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_any_number_of_stops_and_kills_change_no_digit(one: Pool, tmp_path: Path, zero: int, seed: int) -> None:
    draws = random.Random(seed)
    whole, _ = lived_through(one, job(tmp_path / "whole", deepspeed__zero=zero), [])
    plans = [
        Plan(stop_at=draws.randint(1, 200)) if draws.random() < 0.6 else Plan(kill_at=draws.randint(1, 200))
        for _ in range(draws.randint(2, 6))
    ]
    broken, _ = lived_through(one, job(tmp_path / "broken", deepspeed__zero=zero), plans)
    assert broken == whole
