"""Adapters of actor, critic and reward model on one base: what they compute is what whole models compute."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.engine import jobs
from tests.engine.jobs import Ended, Plan
from tests.engine.pool import Pool
from tests.rl import estimate_cases, ppo_cases, ppo_jobs
from tests.rl.comparisons import pairs
from tests.rl.test_ppo import relative_error
from tests.rl.test_ppo_resume import lived_through
from worker.contract.manifest import tree_hash
from worker.contract.order import Input
from worker.contract.parts import Lora
from worker.heads import hidden_states
from worker.rl.base import SharedBase
from worker.scores import token_rows, values

LORA = {"rank": 4, "alpha": 8.0}
CRITIC, REWARD = "stage.critic.model", "stage.reward.terms.0.model"
CURVES = ("ppo/reward", "ppo/kl", "ppo/policy_loss", "ppo/value_loss", "ppo/actor_grad_norm", "ppo/critic_grad_norm")


@pytest.fixture(scope="module")
def learnt(one: Pool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An actor, and a reward model that was learnt on it: merged, and its adapter alone."""
    store = tmp_path_factory.mktemp("learnt")
    actor = ppo_jobs.actor_folder(store / "actor")
    changes = {"stage__max_length": 120, "stage__steps": 6, "stage__lora": LORA, "stage__model": str(actor)}
    made = jobs.Job(store, jobs.spec("reward", **changes), pairs(11))
    ended: Ended = one.run(jobs.attempt, made, 1)[0]
    assert ended.outcome == "Finished", ended.message
    return {"actor": actor} | {output["kind"]: store / output["path"] for output in ended.outputs}


def ppo(store: Path, learnt: dict[str, Path], *, shared: bool, critic: str = "actor", **changes: Any) -> ppo_jobs.Job:
    """A PPO by the reward model: on one base, or each with its own."""
    reward = learnt["adapter" if shared else "model"]
    made = ppo_jobs.ppo(
        store,
        **{
            "stage__actor": {"model": str(learnt["actor"]), "lora": LORA},
            "stage__critic": {"model": str(learnt[critic]), "lora": LORA},
            "stage__reward": {"terms": [{"model": str(reward)}]},
            "stage__share_base": shared,
            **changes,
        },
    )
    models = {"stage.actor.model": learnt["actor"], CRITIC: learnt[critic], REWARD: reward}
    return replace(made, models=models)


def finished(pool: Pool, job: ppo_jobs.Job) -> Ended:
    ended: Ended = pool.run(jobs.attempt, job, 1)[0]
    assert ended.outcome == "Finished", ended.message
    return ended


def test_a_ppo_on_one_base_computes_what_one_with_four_models_does(
    one: Pool, tmp_path: Path, learnt: dict[str, Path]
) -> None:
    apart = finished(one, ppo(tmp_path / "apart", learnt, shared=False))
    shared = finished(one, ppo(tmp_path / "shared", learnt, shared=True))
    for name in CURVES:
        # The reward model is merged on one side, and base and adapter on the other: the same sum in another order.
        assert shared.curve(name) == pytest.approx(apart.curve(name), rel=1e-3, abs=1e-5), name
    assert shared.curve("ppo/reward")[1] == pytest.approx(apart.curve("ppo/reward")[1], rel=1e-5)
    assert shared.curve("ppo/reward")[1] != 0
    assert {output["kind"] for output in shared.outputs} == {"model", "adapter", "critic"}


def test_its_models_are_whole_and_the_base_in_them_is_as_it_was(
    one: Pool, tmp_path: Path, learnt: dict[str, Path]
) -> None:
    from safetensors.torch import load_file

    job = ppo(tmp_path, learnt, shared=True)
    paths = {output["kind"]: job.store / output["path"] for output in finished(one, job).outputs}
    before = load_file(learnt["actor"] / "model.safetensors")
    actor, critic = (load_file(paths[kind] / "model.safetensors") for kind in ("model", "critic"))
    for name, tensor in before.items():
        adapted = "proj" in name
        assert tensor.equal(actor[name]) is not adapted, name
        assert tensor.equal(critic[name]) is not adapted, name
    assert not actor["model.layers.0.mlp.up_proj.weight"].equal(critic["model.layers.0.mlp.up_proj.weight"])
    assert critic["score.weight"].abs().sum() > 0


def test_a_critic_may_go_on_from_the_reward_models_adapter(one: Pool, tmp_path: Path, learnt: dict[str, Path]) -> None:
    fresh = finished(one, ppo(tmp_path / "fresh", learnt, shared=True))
    going_on = finished(one, ppo(tmp_path / "on", learnt, shared=True, critic="adapter"))
    assert going_on.curve("ppo/critic_grad_norm")[1] != fresh.curve("ppo/critic_grad_norm")[1]


def test_a_critics_body_is_the_reward_models_its_head_zero_and_its_base_the_actors_own(learnt: dict[str, Path]) -> None:
    actor: Any = AutoModelForCausalLM.from_pretrained(learnt["actor"], dtype=torch.float32)
    base = SharedBase(actor, AutoTokenizer.from_pretrained(learnt["actor"]), given(learnt["actor"]))
    lora = Lora(rank=4, alpha=8.0)
    critic = base.critic(lora, 1, path=CRITIC, name="rm", source=given(learnt["adapter"]))
    fresh = base.critic(lora, 1, path=CRITIC, name="actor", source=None)
    merged = AutoModelForSequenceClassification.from_pretrained(learnt["model"], dtype=torch.float32)
    rows = token_rows([[97, 98, 99, 100], [101, 102]], pad_id=256)
    with torch.no_grad():
        body, wanted, plain = (hidden_states(model.eval(), rows)[0] for model in (critic, merged, fresh))
        assert torch.allclose(body, wanted, atol=1e-5) and not torch.allclose(body, plain, atol=1e-3)
        assert not values(critic, rows).any()
    own = {id(parameter) for parameter in actor.parameters()}
    for model in (critic, fresh):
        frozen = [p for name, p in model.named_parameters() if not p.requires_grad and "score" not in name]
        assert frozen and all(id(parameter) in own for parameter in frozen)


def given(folder: Path) -> Input:
    """A folder as an input."""
    return Input(reference=str(folder), kind="path", location=str(folder), sha256=tree_hash(folder))


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_two_ranks_give_the_gradient_of_one(
    one: Pool, two: Pool, tmp_path: Path, learnt: dict[str, Path], zero: int
) -> None:
    changes: dict[str, Any] = {"stage__ppo": {"minibatches": 1}}
    expected = one.run(ppo_cases.gradients, ppo(tmp_path, learnt, shared=True, stage__micro_batch=8, **changes))[0]
    spread = {"deepspeed__zero": zero, "resources": {"per_node": 2}, "stage__micro_batch": 2}
    for found in two.run(ppo_cases.gradients, ppo(tmp_path, learnt, shared=True, **changes, **spread)):
        for role in ("actor", "critic"):
            assert relative_error(found[role], expected[role]) <= 1e-5, role


def test_it_resumes_to_the_last_digit(one: Pool, tmp_path: Path, learnt: dict[str, Path]) -> None:
    changes: dict[str, Any] = {"stage__steps": 3, "stage__ppo": {"epochs": 2, "minibatches": 2, "ema": 0.9}}
    whole, _ = lived_through(one, ppo(tmp_path / "whole", learnt, shared=True, **changes), [])
    plans = [Plan(stop_at=25), Plan(kill_at=40), Plan(stop_at=35)]
    broken, lives = lived_through(one, ppo(tmp_path / "broken", learnt, shared=True, **changes), plans)
    assert broken == whole and len(lives) > 2


@pytest.mark.parametrize(
    ("critic", "changes", "says"),
    [
        ("adapter", {"stage__critic__lora": {"rank": 8}}, "has rank 4 and alpha 8"),
        ("adapter", {"stage__critic__lora": {**LORA, "targets": ["q_proj"]}}, "no adapter of these layers"),
        ("actor", {"stage__reward__terms": [{"model": "/x", "deepspeed": {"zero": 0}}]}, "runs as the actor does"),
        ("model", {}, "holds no adapter"),
    ],
)
def test_what_cannot_share_is_refused_before_the_first_step(
    one: Pool, tmp_path: Path, learnt: dict[str, Path], critic: str, changes: dict[str, Any], says: str
) -> None:
    ended: Ended = one.run(jobs.attempt, ppo(tmp_path, learnt, shared=True, critic=critic, **changes), 1)[0]
    assert ended.outcome == "InvalidSpec" and says in ended.message
    assert ended.curve("ppo/reward") == {}


def test_an_adapter_of_other_weights_is_refused(one: Pool, tmp_path: Path, learnt: dict[str, Path]) -> None:
    other = ppo_jobs.actor_folder(tmp_path / "other", seed=2)
    ended: Ended = one.run(jobs.attempt, ppo(tmp_path, {**learnt, "actor": other}, shared=True), 1)[0]
    assert ended.outcome == "InvalidSpec" and "was trained on another model" in ended.message


def test_one_base_takes_at_most_65_hundredths_of_what_four_models_take(one: Pool, tmp_path: Path) -> None:
    """By the peak of all tensors; the base's weights are what a large model has most of."""
    peaks = {}
    wide = ppo_jobs.actor_folder(tmp_path / "actor", size=256, layers=4)
    changes = {"stage__max_length": 120, "stage__steps": 1, "stage__lora": LORA, "stage__model": str(wide)}
    trained = jobs.Job(tmp_path, jobs.spec("reward", **changes), pairs(4))
    ended: Ended = one.run(jobs.attempt, trained, 1)[0]
    folders = {"actor": wide} | {output["kind"]: tmp_path / output["path"] for output in ended.outputs}
    for shared in (True, False):
        job = ppo(tmp_path / f"{shared}", folders, shared=shared, stage__steps=2)
        peaks[shared] = one.run(estimate_cases.peak_of_tensors, job, timeout=120)[0]
    print(f"peak tensor bytes, one base / four models: {peaks[True] / peaks[False]:.3f}")
    assert peaks[True] <= 0.65 * peaks[False]
