"""Guards in jobs that run: what an iteration has shown reaches each of them, and does what the spec says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import jobs
from tests.engine.jobs import Ended, Plan
from tests.engine.pool import Pool
from tests.rl import ppo_cases, ppo_jobs
from tests.rl.test_reward_service import Server


@pytest.mark.parametrize(
    ("name", "guard", "says"),
    [
        ("entropy", {"min": 20.0}, "5.5"),
        ("length", {"min": 30.0}, "fewer than 30 (guards.length.min)"),
    ],
)
def test_a_guard_sees_the_number_of_its_name_and_ends_the_job(
    one: Pool, tmp_path: Path, name: str, guard: dict[str, Any], says: str
) -> None:
    ended: Ended = one.run(jobs.attempt, ppo_jobs.ppo(tmp_path, stage__guards={name: {**guard, "then": "stop"}}), 1)[0]
    assert ended.outcome == "Diverged" and says in ended.message, ended.message
    assert ended.events.keys() >= {f"{name.capitalize()}Guard"}


def test_a_job_that_judges_at_another_temperature_than_it_learns_is_stopped_by_its_ratio(
    one: Pool, tmp_path: Path
) -> None:
    rollout = {"prompts": 8, "slots": 4, "max_new_tokens": 8, "temperature": 0.5}
    job = ppo_jobs.ppo(tmp_path, stage__rollout=rollout)
    ended: Ended = one.run(ppo_cases.with_a_fault, job, "another temperature")[0]
    assert ended.outcome == "Diverged" and "guards.ratio.max" in ended.message
    assert "RatioGuard" in ended.events
    assert one.run(jobs.attempt, job, 2)[0].outcome == "Finished"


def test_a_pause_before_an_update_that_was_stopped_in_before_is_made_once(one: Pool, tmp_path: Path) -> None:
    rollout = {"prompts": 8, "slots": 4, "max_new_tokens": 8, "temperature": 0.5}
    job = ppo_jobs.ppo(tmp_path, stage__rollout=rollout, stage__guards={"ratio": {"then": "pause"}})
    amid = Plan(stop_at=30)  # after the answers were judged, before the first update
    stopped: Ended = one.run(ppo_cases.with_a_fault, job, "another temperature", 1, amid)[0]
    assert stopped.outcome == "Stopped", stopped.message
    assert [m["checkpoint"]["part"] for m in stopped.said if m["kind"] == "checkpoint"] == [9], stopped.message
    paused: Ended = one.run(jobs.attempt, job, 2)[0]
    assert paused.outcome == "PausedByGuard" and "guards.ratio.max" in paused.message
    assert one.run(jobs.attempt, job, 3)[0].outcome == "Finished"


def test_a_weight_that_no_gradient_reaches_ends_the_job_with_its_name(one: Pool, tmp_path: Path) -> None:
    ended: Ended = one.run(ppo_cases.with_a_fault, ppo_jobs.ppo(tmp_path), "an idle weight")[0]
    assert ended.outcome == "Diverged", ended.message
    assert "no gradient reached actor: model.idle in a whole update" in ended.message
    assert "GradientGuard" in ended.events


@pytest.fixture
def rising() -> Iterator[Server]:
    """A service that finds all answers better each time it is asked, but those to held-out prompts worse."""
    server = Server()

    def scores(asked: Any) -> dict[str, list[float]]:
        held_out = all(prompt == "why" for prompt in asked["prompts"])
        asks = len(server.asked)
        return {"scores": [(-asks if held_out else asks) + 0.01 * n for n in range(len(asked["answers"]))]}

    server.answer = scores
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("guard", "held_out", "says"),
    [
        ({"budget": 1e-9}, False, "guards.hacking.budget"),
        ({"budget": 1e9, "drop": 0.5}, True, "guards.hacking.drop"),
    ],
)
def test_a_reward_that_rises_by_the_kl_alone_or_while_the_held_out_one_falls_ends_the_job(
    one: Pool, tmp_path: Path, rising: Server, guard: dict[str, float], held_out: bool, says: str
) -> None:
    changes: dict[str, Any] = {"stage__guards": {"hacking": {"window": 1, "then": "stop", **guard}}, "stage__steps": 4}
    changes |= {"stage__reward": {"terms": [{"service": rising.url}]}}
    # What a price of the KL would make of this reward is no matter here.
    changes |= {"stage__reference": {"model": "/reference"}}
    if held_out:
        changes |= {"evaluate": {"data": "files/eval", "every_steps": 1}}
    job = ppo_jobs.ppo(tmp_path, **changes)
    job.models["stage.reference.model"] = ppo_jobs.actor_folder(tmp_path / "reference", seed=2)
    job.held_out = [{"prompt": "why"}] * 4 if held_out else []
    job.rows = [{"prompt": "go on"}] * 24
    ended: Ended = one.run(jobs.attempt, job, 1)[0]
    assert ended.outcome == "Diverged" and says in ended.message, ended.message
    assert "HackingGuard" in ended.events
