"""PPO as a whole: the same gradient however it is spread, what it refuses, what it tells, and that it learns."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.engine import jobs
from tests.engine.jobs import Ended, Plan
from tests.engine.pool import Pool
from tests.rl import ppo_cases, ppo_jobs


def attempt(pool: Pool, job: ppo_jobs.Job, number: int = 1) -> Ended:
    """An attempt that nobody disturbs."""
    ended: Ended = pool.run(jobs.attempt, job, number)[0]
    return ended


def relative_error(found: list[float], expected: list[float]) -> float:
    """The norm of the difference over that of what was expected."""
    return math.dist(found, expected) / math.hypot(*expected)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_two_ranks_at_every_zero_stage_give_the_gradient_of_one_rank(
    one: Pool, two: Pool, tmp_path: Path, zero: int, micro_batch: int
) -> None:
    changes: dict[str, Any] = {"stage__ppo": {"minibatches": 1, "entropy": 0.01}, "stage__micro_batch": micro_batch}
    alone = ppo_jobs.ppo(tmp_path, **changes | {"stage__micro_batch": 8})
    spread = ppo_jobs.ppo(tmp_path, **changes, deepspeed=ppo_jobs.deepspeed(zero), resources={"per_node": 2})
    expected = one.run(ppo_cases.gradients, alone)[0]
    for found in two.run(ppo_cases.gradients, spread):
        for role in ("actor", "critic"):
            assert relative_error(found[role], expected[role]) <= 1e-5, role


@pytest.mark.parametrize("zero", [0, 3])
def test_dialogues_that_are_learnt_from_beside_give_one_gradient_too(
    one: Pool, two: Pool, tmp_path: Path, zero: int
) -> None:
    changes: dict[str, Any] = {"stage__ppo": {"minibatches": 1, "ptx": 3.0}}
    changes |= {"stage__data": {"prompts": "files/prompts", "ptx": "files/ptx"}}
    spread = {"deepspeed": ppo_jobs.deepspeed(zero), "resources": {"per_node": 2}, "stage__micro_batch": 2}

    def job(**more: Any) -> ppo_jobs.Job:
        made = ppo_jobs.ppo(tmp_path, **changes | more)
        made.dialogues = jobs.dialogues(7, seed=3)  # of uneven lengths
        return made

    expected = one.run(ppo_cases.gradients, job(stage__micro_batch=8))[0]
    plain = ppo_jobs.ppo(tmp_path, stage__ppo={"minibatches": 1}, stage__micro_batch=8)
    without = one.run(ppo_cases.gradients, plain)[0]
    assert relative_error(expected["actor"], without["actor"]) > 0.1, "the dialogues have no weight"
    assert expected["critic"] == without["critic"]
    for found in two.run(ppo_cases.gradients, job(**spread)):
        assert relative_error(found["actor"], expected["actor"]) <= 1e-5
    ended = attempt(one, job(stage__micro_batch=8))
    assert ended.outcome == "Finished", ended.message
    assert ended.curve("ppo/ptx_loss")[2] < ended.curve("ppo/ptx_loss")[1]


def test_the_first_ratio_is_exactly_1_and_the_actor_begins_at_its_reference(one: Pool, tmp_path: Path) -> None:
    for lora in (None, {"rank": 4}, {"rank": 8, "dropout": 0.3}):
        changes = {"stage__actor__lora": lora, "stage__critic__lora": lora}
        ended = attempt(one, ppo_jobs.ppo(tmp_path / f"{lora}", **changes))
        assert ended.outcome == "Finished", ended.message
        assert set(ended.curve("ppo/ratio_error").values()) == {0.0}
        kl = ended.curve("ppo/kl")
        # Of a whole model the copy is the same; the actor without its adapters is, too.
        assert kl[1] == pytest.approx(0.0, abs=1e-6)
        assert kl[2] != 0.0


def test_every_answer_is_shown_with_the_nats_of_its_tokens(one: Pool, tmp_path: Path) -> None:
    ended = attempt(one, ppo_jobs.ppo(tmp_path, stage__samples={"per_step": 3}))
    samples = [m["sample"] for m in ended.said if m["kind"] == "sample"]
    assert [s["step"] for s in samples] == [1, 1, 1, 2, 2, 2]
    for shown in samples:
        assert len(shown["kl"]) == len(shown["tokens"]) > 0
        assert shown["reward"] == pytest.approx(shown["terms"]["regex"] + shown["terms"]["length"])


def test_what_is_handed_over_loads_and_is_the_actor_that_was_trained(one: Pool, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    job = ppo_jobs.ppo(tmp_path, stage__ppo={"ema": 0.9}, stage__steps=1)
    ended = attempt(one, job)
    paths = {output["kind"]: job.store / output["path"] for output in ended.outputs}
    assert set(paths) == {"model", "ema", "critic"}
    actor, average = (AutoModelForCausalLM.from_pretrained(paths[kind]) for kind in ("model", "ema"))
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "actor")
    name = "model.layers.0.mlp.up_proj.weight"
    now, then, mean = (dict(m.named_parameters())[name] for m in (actor, before, average))
    assert not now.equal(then)
    # After one iteration the average has nine tenths of what was there before.
    torch.testing.assert_close(mean - then, 0.1 * (now - then), rtol=1e-3, atol=1e-7)
    critic = AutoModelForSequenceClassification.from_pretrained(paths["critic"])
    assert critic.score.weight.abs().sum() > 0


def test_a_prompt_longer_than_its_room_is_refused_with_its_line(one: Pool, tmp_path: Path) -> None:
    job = ppo_jobs.ppo(tmp_path)
    job.rows[4]["prompt"] = "long " * 40
    ended = attempt(one, job)
    assert ended.outcome == "InvalidData"
    assert "line 5" in ended.message and "stage.max_length" in ended.message
    cut = ppo_jobs.ppo(tmp_path, stage__data={"prompts": "files/prompts", "truncate": True})
    cut.rows[4]["prompt"] = "long " * 40
    assert attempt(one, cut).outcome == "Finished"


def test_a_batch_in_which_every_answer_hits_the_limit_is_told_and_trained(one: Pool, tmp_path: Path) -> None:
    changes = {"stage__rollout": {"prompts": 8, "slots": 4, "max_new_tokens": 4, "min_new_tokens": 4}}
    ended = attempt(one, ppo_jobs.ppo(tmp_path, **changes))
    assert ended.outcome == "Finished"
    assert "LengthGuard" in ended.events
    # The end is barred before the fourth token, which may be one.
    assert set(ended.curve("ppo/length").values()) == {4.0}


@pytest.mark.parametrize(
    ("guards", "outcome"),
    [({"kl": {"max": 1e-9, "then": "stop"}}, "Diverged"), ({"kl": {"max": 1e-9, "then": "pause"}}, "PausedByGuard")],
)
def test_a_guard_stops_or_pauses_as_the_spec_says(
    one: Pool, tmp_path: Path, guards: dict[str, Any], outcome: str
) -> None:
    job = ppo_jobs.ppo(tmp_path, stage__guards=guards, stage__steps=4)
    ended = attempt(one, job)
    assert ended.outcome == outcome
    assert "guards.kl.max" in ended.message and "KlGuard" in ended.events
    if outcome == "PausedByGuard":
        # It saved what it had, and is not paused again by the same thing.
        assert ended.checkpoints == [2]
        assert attempt(one, job, 2).outcome == "Finished"


def test_held_out_answers_are_compared_with_those_before_the_first_step_also_after_a_stop(
    one: Pool, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "stage__steps": 3, "evaluate": {"held_out": 0.3, "every_steps": 1}, "checkpoint": {"every_steps": 1},
        "stage__optimizer": {"lr": 0.03, "warmup": 0.0}, "stage__rollout__max_new_tokens": 24,
    }  # fmt: skip
    whole = attempt(one, ppo_jobs.ppo(tmp_path / "whole", **changes))
    rates = whole.curve("eval/win_rate")
    assert rates[0] == 0.5 and set(rates) == {0, 1, 2, 3}
    terms = [whole.curve(f"eval/reward/{name}") for name in ("regex", "length")]
    summed = {step: terms[0][step] + terms[1][step] for step in rates}
    assert summed == pytest.approx(whole.curve("eval/reward"))
    assert set(rates.values()) != {0.5}, "nothing was learnt: the test shows nothing"
    broken = ppo_jobs.ppo(tmp_path / "broken", **changes)
    first: Ended = one.run(jobs.attempt, broken, 1, Plan(kill_at=60))[0]
    second = attempt(one, broken, 2)
    assert second.resumed_from is not None and first.curve("eval/win_rate") | second.curve("eval/win_rate") == rates


def test_an_evaluation_after_a_pause_is_saved_and_not_made_again(one: Pool, tmp_path: Path) -> None:
    guards = {"kl": {"max": 1e-9, "then": "pause"}, "hacking": {"then": "pause"}}
    job = ppo_jobs.ppo(tmp_path, stage__guards=guards, stage__steps=4, evaluate={"held_out": 0.3, "every_steps": 1})
    # Paused before the evaluation of its step; stopped after it, before the next rollout has made anything.
    first = attempt(one, job)
    assert first.outcome == "PausedByGuard" and list(first.curve("eval/reward")) == [0, 1]
    second: Ended = one.run(jobs.attempt, job, 2, Plan(stop_at=35))[0]
    assert second.outcome == "Stopped" and list(second.curve("eval/reward")) == [2], second.message
    assert [m["checkpoint"]["part"] for m in second.said if m["kind"] == "checkpoint"] == [0]
    third = attempt(one, job, 3)
    assert third.outcome == "Finished" and list(third.curve("eval/reward")) == [3, 4]


@pytest.mark.parametrize(
    ("positions", "template", "outcome", "words"),
    [
        (64, None, "InvalidSpec", "64 positions"),
        (128, "{{ raise_exception('no system here') }}", "InvalidData", "prompt 1"),
    ],
)
def test_a_reward_model_that_cannot_read_the_prompts_is_refused_before_anything_is_sampled(
    one: Pool, tmp_path: Path, positions: int, template: str | None, outcome: str, words: str
) -> None:
    job = ppo_jobs.ppo(tmp_path, stage__reward={"terms": [{"model": "/rm"}]})
    ppo_jobs.reward_folder(tmp_path / "rm", tmp_path / "actor", positions=positions, template=template)
    job.models["stage.reward.terms.0.model"] = tmp_path / "rm"
    ended = attempt(one, job)
    assert ended.outcome == outcome and words in ended.message, ended.message
    assert ended.curve("ppo/reward") == {}


def test_a_reward_model_that_gives_nan_ends_the_job_before_anything_is_learnt(one: Pool, tmp_path: Path) -> None:
    job = ppo_jobs.ppo(tmp_path, stage__reward={"terms": [{"model": "/rm"}]})
    ppo_jobs.reward_folder(tmp_path / "rm", tmp_path / "actor", weight=float("nan"))
    job.models["stage.reward.terms.0.model"] = tmp_path / "rm"
    ended = attempt(one, job)
    assert ended.outcome == "Diverged"
    assert "term `model`" in ended.message and "nan" in ended.message
    assert ended.curve("ppo/reward") == {}


def test_memory_that_does_not_suffice_for_an_update_is_found_out_before_anything_is_sampled(
    one: Pool, tmp_path: Path
) -> None:
    ended: Ended = one.run(ppo_cases.with_a_fault, ppo_jobs.ppo(tmp_path), "little memory")[0]
    assert ended.outcome == "OutOfMemory", ended.message
    assert "micro-batch of 1 rows x" in ended.message
    assert "generating" not in [m.get("activity") for m in ended.said]


LEARNS: dict[str, Any] = {
    "stage__reward": {"terms": [{"function": "regex", "pattern": "[aeiou]"}, {"function": "length", "weight": -0.5}]},
    "stage__rollout": {"prompts": 64, "slots": 32, "max_new_tokens": 12},
    "stage__ppo": {"epochs": 2, "minibatches": 2, "kl": {"coef": 0.01}},
    "stage__micro_batch": 16,
    "stage__steps": 12,
    "stage__optimizer": {"lr": 3e-3, "warmup": 0.0, "schedule": "constant"},
    "stage__guards": {"hacking": None, "length": None, "kl": None, "entropy": None},
    "evaluate": {"held_out": 0.25},
}
"""Answers with a vowel in them, and short ones: 0.5 at random at most, 0.96 at best."""
MARGIN = 0.2
"""By how much the held-out reward is to rise, stated before any of it was run; with the sign flipped, to fall."""


def learnt(pool: Pool, store: Path, seed: int, sign: float) -> float:
    """By how much the held-out reward, as it is meant, changes."""
    terms = [{**term, "weight": sign * term.get("weight", 1.0)} for term in LEARNS["stage__reward"]["terms"]]
    job = ppo_jobs.ppo(store, rows=64, **LEARNS | {"stage__reward": {"terms": terms}, "stage__seed": seed})
    ended: Ended = pool.run(jobs.attempt, job, 1, timeout=120)[0]
    assert ended.outcome == "Finished", ended.message
    rewards = ended.curve("eval/reward")
    print(f"seed {seed}, sign {sign:+g}: {sign * rewards[0]:.3f} -> {sign * rewards[max(rewards)]:.3f}")
    return sign * (rewards[max(rewards)] - rewards[0])


def test_ppo_learns_what_it_is_rewarded_for_and_the_contrary_with_the_sign_flipped(one: Pool, tmp_path: Path) -> None:
    assert learnt(one, tmp_path / "for", 1, 1.0) > MARGIN
    assert learnt(one, tmp_path / "against", 1, -1.0) < 0


@pytest.mark.soak
def test_ppo_learns_on_four_of_five_seeds(one: Pool, tmp_path: Path) -> None:
    rises = [learnt(one, tmp_path / f"for-{seed}", seed, 1.0) for seed in range(1, 6)]
    falls = [learnt(one, tmp_path / f"against-{seed}", seed, -1.0) for seed in range(1, 6)]
    assert sum(rise > MARGIN for rise in rises) >= 4
    assert sum(fall < 0 for fall in falls) >= 4
