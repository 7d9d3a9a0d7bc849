"""Answers compared with those beside them: values worked out by hand, another implementation's losses, real jobs."""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOTrainer

from tests.engine import jobs
from tests.engine.jobs import Ended, Plan
from tests.engine.pool import Pool
from tests.rl import ppo_jobs
from tests.rl.test_ppo_resume import lived_through
from worker.contract.group import Group, Grpo, Rloo
from worker.logprobs import log_probabilities
from worker.rl.group import GroupBatch, advantages_of, counted, group_sums, weights_of
from worker.rl.objectives import answer_batch

TEMPERATURE = 0.8
MOST = 6
TRLS = {"token": "bnpo", "answer": "grpo", "length": "dr_grpo"}
"""How TRL calls what a loss is a mean over."""


def test_an_answer_that_alone_is_right_by_hand() -> None:
    rewards = torch.tensor([1.0, 0, 0, 0])
    assert advantages_of(rewards, 4, Grpo()).tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-3)
    assert advantages_of(rewards, 4, Grpo(std=False)).tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25])
    assert advantages_of(rewards, 4, Rloo()).tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])


def test_groups_do_not_see_each_other_and_equal_rewards_are_worth_nothing() -> None:
    rewards = torch.tensor([3.0, 1.0, 7.0, 7.0])
    assert advantages_of(rewards, 2, Rloo()).tolist() == [2, -2, 0, 0]
    assert advantages_of(rewards, 2, Grpo()).tolist()[2:] == [0, 0]


def test_what_is_left_out_counts_nowhere() -> None:
    rewards, ended = torch.tensor([3.0, 1.0, 7.0, 7.0]), torch.tensor([True, False, True, True])
    assert counted(rewards, ended, 2, Grpo()).tolist() == [True] * 4
    assert counted(rewards, ended, 2, Grpo(drop_equal=True)).tolist() == [True, True, False, False]
    kept = counted(rewards, ended, 2, Grpo(drop_equal=True, mask_overlong=True))
    assert kept.tolist() == [True, False, False, False]
    lengths = torch.tensor([2.0, 4.0, 1.0, 3.0])
    expected = {"token": ([1, 0, 0, 0], [2, 0, 0, 0]), "answer": ([0.5, 0, 0, 0], [1, 0, 0, 0])}
    expected["length"] = ([0.1, 0, 0, 0], [1, 0, 0, 0])
    for average, (weights, divided) in expected.items():
        found = weights_of(lengths, kept, Grpo.model_validate({"average": average}), 10)
        assert [part.tolist() for part in found] == [pytest.approx(weights), divided]


class Trainer(SimpleNamespace):
    """As much of TRL's trainer as its loss looks at; all that is not said is off."""

    def __getattr__(self, name: str) -> None:
        return None


def trls(group: Group, logprobs: Tensor, batch: GroupBatch, advantages: Tensor) -> Tensor:
    """TRL's loss of the same numbers."""
    mask = batch.mask.float()
    told = Trainer(
        importance_sampling_level=group.ratio, beta=group.kl.coef, loss_type=TRLS[group.average],
        epsilon_low=group.clip, epsilon_high=group.clip if group.clip_high is None else group.clip_high,
        args=Trainer(delta=None, use_bias_correction_kl=False), use_vllm=False, off_policy_mask_threshold=None,
        current_gradient_accumulation_steps=1, max_completion_length=MOST, top_entropy_quantile=1.0,
        model=SimpleNamespace(training=True), tools=None,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, **_: x, num_processes=1),
        _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    inputs = {
        "prompt_ids": batch.input_ids[:, :0], "prompt_mask": batch.input_ids[:, :0],
        "completion_ids": batch.input_ids, "completion_mask": mask,
        "advantages": advantages, "old_per_token_logps": batch.old_logprobs, "ref_per_token_logps": batch.reference,
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    found: Tensor = GRPOTrainer._compute_loss(told, None, inputs)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("average", TRLS)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("more", [{}, {"clip_high": 0.28}, {"kl": {"coef": 0.3}}], ids=["plain", "higher", "kl"])
def test_losses_and_their_gradients_are_trls(average: str, ratio: str, more: dict[str, Any]) -> None:
    group = Grpo.model_validate({"average": average, "ratio": ratio, "clip": 0.1, **more})
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    answers = [[7, 8, 9], [5, 6, 7, 8, 9, 10], [11], [3, 4, 5, 6]]
    plain = answer_batch([[1, 2, 3], [4], [9, 9], [2, 2, 2, 2]], answers, pad_id=0)
    with torch.no_grad():
        now = log_probabilities(model, plain, TEMPERATURE)
    old, reference = (now + 0.3 * torch.randn_like(now) * plain.mask for _ in range(2))
    lengths = plain.mask.sum(dim=1).float()
    advantages = advantages_of(torch.tensor([1.0, 0.2, -0.5, 0.4]), 2, group)
    weights, divided = weights_of(lengths, torch.ones(4, dtype=torch.bool), group, MOST)
    batch = GroupBatch(
        **vars(plain), old_logprobs=old, advantages=advantages[:, None].expand_as(old), reference=reference,
        weights=weights[:, None].expand_as(old),
    )  # fmt: skip
    loss = group_sums(model, batch, group, TEMPERATURE)[0] / divided.sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected = trls(group, log_probabilities(model, plain, TEMPERATURE), batch, advantages)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    for found, its in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(found, its, rtol=1e-4, atol=1e-6)


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("grpo", {"kl": {"coef": 0.1}, "average": "answer"}),
    "gspo": ("grpo", {"ratio": "sequence", "clip": 0.01, "drop_equal": True}),
    "rloo": ("rloo", {"mask_overlong": True, "average": "length", "entropy": 0.01}),
}


def job(folder: Path, variant: str, **changes: Any) -> ppo_jobs.Job:
    stage, settings = VARIANTS[variant]
    passes = {"epochs": 2, "minibatches": 2}
    return ppo_jobs.group(folder, stage, **{f"stage__{stage}": {**passes, **settings}, **changes})


def curves(pool: Pool, made: ppo_jobs.Job, kind: str) -> dict[str, list[float]]:
    ended: Ended = pool.run(jobs.attempt, made, 1)[0]
    assert ended.outcome == "Finished", ended.message
    names = ("reward", "policy_loss", "kl", "actor_grad_norm", "length")
    found = {name: list(ended.curve(f"{kind}/{name}").values()) for name in names}
    assert all(len(values) == 2 for values in found.values()), found
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_zero_and_accumulation_change_nothing(one: Pool, two: Pool, tmp_path: Path, variant: str) -> None:
    kind = VARIANTS[variant][0]
    expected = curves(one, job(tmp_path / "one", variant, stage__micro_batch=8), kind)
    assert any(abs(loss) > 1e-4 for loss in expected["policy_loss"]), "nothing was learnt: the test shows nothing"
    for zero in (2, 3):
        changes = {"resources": {"per_node": 2}, "stage__micro_batch": 2, "deepspeed": ppo_jobs.deepspeed(zero)}
        found = curves(two, job(tmp_path / f"{zero}", variant, **changes), kind)
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-5), (zero, name)


def test_stops_and_kills_change_no_digit(one: Pool, tmp_path: Path) -> None:
    more: dict[str, Any] = {"stage__steps": 3, "checkpoint": {"every_steps": 1}, "evaluate": {"held_out": 0.2}}
    whole, _ = lived_through(one, job(tmp_path / "whole", "grpo", **more), [])
    broken, lives = lived_through(one, job(tmp_path / "broken", "grpo", **more), [Plan(stop_at=9), Plan(kill_at=25)])
    assert [life.outcome for life in lives] == ["Stopped", "Killed", "Finished"]
    assert whole["grpo/policy_loss"]
    assert broken == whole


LEARNS: dict[str, Any] = {
    "stage__reward": {"terms": [{"function": "regex", "pattern": "[aeiou]"}, {"function": "length", "weight": -0.5}]},
    "stage__rollout": {"prompts": 8, "slots": 32, "max_new_tokens": 12},
    "stage__answers": 8,
    "stage__micro_batch": 16,
    "stage__steps": 12,
    "stage__optimizer": {"lr": 3e-3, "warmup": 0.0, "schedule": "constant"},
    "stage__guards": {"hacking": None, "length": None, "kl": None, "entropy": None},
    "evaluate": {"held_out": 0.25},
}
MARGIN = 0.2
"""By how much the held-out reward is to rise, stated before any of it was run: that of ppo's own test."""


def rise(pool: Pool, folder: Path, variant: str, seed: int) -> float:
    """Of the held-out reward: 0.5 at random at most, 0.96 at best."""
    made = job(folder, variant, **LEARNS, stage__seed=seed)
    made.rows = ppo_jobs.prompts(64)
    ended: Ended = pool.run(jobs.attempt, made, 1, timeout=120)[0]
    assert ended.outcome == "Finished", ended.message
    rewards = ended.curve("eval/reward")
    print(f"{variant}, seed {seed}: {rewards[0]:.3f} -> {rewards[max(rewards)]:.3f}")
    return rewards[max(rewards)] - rewards[0]


@pytest.mark.parametrize("variant", ["grpo", "rloo"])
def test_an_actor_learns_what_it_is_rewarded_for(one: Pool, tmp_path: Path, variant: str) -> None:
    assert rise(one, tmp_path, variant, 1) > MARGIN


@pytest.mark.soak
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_learns_on_four_of_five_seeds(one: Pool, tmp_path: Path, variant: str) -> None:
    assert sum(rise(one, tmp_path / f"{seed}", variant, seed) > MARGIN for seed in range(1, 6)) >= 4
