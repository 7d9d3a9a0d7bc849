"""Each model of a PPO as its role says: sharded in a way of its own, and the numbers of one rank all the same."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.jobs import Ended
from tests.engine.pool import Pool
from tests.rl import ppo_cases, ppo_jobs
from tests.rl.ppo_jobs import deepspeed

TOLD = ("reward", "kl", "return", "policy_loss", "value_loss", "entropy", "length", "clipped")
CURVES = [f"ppo/{name}" for name in (*TOLD, "actor_grad_norm", "critic_grad_norm")]
Stages = dict[str, dict[str, Any]]


def ran(pool: Pool, store: Path, stages: Stages, **changes: Any) -> tuple[Ended, dict[str, Any]]:
    """A job whose actor, critic, reference and reward model have the DeepSpeed of `stages`, and how they lay."""
    actor, reference = ppo_jobs.actor_folder(store / "actor"), ppo_jobs.actor_folder(store / "reference", seed=2)
    ppo_jobs.reward_folder(store / "rm", actor)
    told = {name: {"deepspeed": stages[name]} if name in stages else {} for name in ("reference", "reward")}
    for name in ("actor", "critic"):
        changes[f"stage__{name}__deepspeed"] = stages.get(name)
    job = ppo_jobs.ppo(
        store,
        stage__reference={"model": "/reference"} | told["reference"],
        stage__reward={"terms": [{"model": "/rm"} | told["reward"]]},
        # By a larger epsilon gradients next to 0 move next to nothing, whatever sign rounding gives them.
        stage__optimizer={"lr": 3e-3, "warmup": 0.0, "eps": 1e-3},
        stage__guards={"length": None},
        stage__micro_batch=2,
        **changes,
    )
    job.models = {"stage.reference.model": reference, "stage.reward.terms.0.model": store / "rm"}
    ended, found = pool.run(ppo_cases.sharded, job)[0]
    assert ended.outcome == "Finished", ended.message
    return ended, found


@pytest.fixture(scope="module")
def alone(one: Pool, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """One rank at ZeRO 0."""
    ended, found = ran(one, tmp_path_factory.mktemp("alone"), {})
    assert found == {"actor": (0, None), "critic": (0, None), "reference": 0, "rewards": [0]}
    return ended


MIXED: dict[str, tuple[Stages, dict[str, Any]]] = {
    "an actor in shards": (
        {"actor": deepspeed(3), "critic": deepspeed(1), "reference": deepspeed(0), "reward": deepspeed(3)},
        {"actor": (3, None), "critic": (1, None), "reference": 0, "rewards": [3]},
    ),
    "the state on the host": (
        {"actor": deepspeed(2, offload="cpu"), "critic": deepspeed(3), "reference": deepspeed(3)},
        {"actor": (2, "cpu"), "critic": (3, None), "reference": 3, "rewards": [0]},
    ),
}


@pytest.mark.parametrize("mixed", MIXED)
def test_roles_that_are_sharded_each_in_its_own_way_give_the_curves_of_one_rank(
    two: Pool, tmp_path: Path, alone: Ended, mixed: str
) -> None:
    stages, expected = MIXED[mixed]
    ended, found = ran(two, tmp_path, stages, resources={"per_node": 2})
    assert found == expected
    for name in CURVES:
        assert ended.curve(name) == pytest.approx(alone.curve(name), rel=1e-5, abs=1e-6), name
