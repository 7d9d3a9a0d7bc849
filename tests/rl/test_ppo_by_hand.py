"""Updates of a PPO, number by number: as numpy works them out from the models' logits and values."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.pool import Pool
from tests.rl import ppo_cases, ppo_jobs

# No two numbers are alike, and each has its say: norms above the clip, an epsilon that sees how much was clipped.
CHANGES: dict[str, Any] = {
    "stage__ppo": {
        "epochs": 2, "minibatches": 1, "gamma": 0.97, "lam": 0.9, "clip": 0.15, "value_clip": 0.25, "entropy": 0.01,
        "kl": {"coef": 0.1},
    },
    "stage__rollout": {"prompts": 8, "slots": 4, "max_new_tokens": 8, "temperature": 0.7},
    "stage__actor__optimizer": {"lr": 0.02, "warmup": 0, "schedule": "constant", "eps": 0.01, "clip": 0.3},
    "stage__critic__optimizer": {"lr": 0.01, "warmup": 0, "schedule": "constant", "eps": 0.02, "clip": 0.2},
    "stage__micro_batch": 2,
}  # fmt: skip


def test_two_updates_are_what_numpy_works_out_of_logits_and_values(one: Pool, tmp_path: Path) -> None:
    told = one.run(ppo_cases.two_updates, ppo_jobs.ppo(tmp_path, **CHANGES))[0]
    for name, (found, expected) in told["credit"].items():
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=name)
    first, second = told["updates"]
    for found, expected in (first, second):
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert 0.05 < found["clipped"] < 0.95 and 0.05 < found["values_clipped"] < 0.95
        assert found["actor_grad_norm"] > 0.3 and found["critic_grad_norm"] > 0.2
    assert second[0]["policy_loss"] < first[0]["policy_loss"] - 0.01
    for role, (found, expected) in told["moved"].items():
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected), role
