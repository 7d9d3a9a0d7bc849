"""Optimizers, the groups of their weights, and weights that stay as they are."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine import cases, jobs
from tests.engine.pool import Pool
from tests.engine.test_schedule import rates

HALF_RATE = {"match": ["*norm*"], "lr": 0.5, "weight_decay": 0.0}
KINDS: dict[str, dict[str, Any]] = {
    "lion": {"stage__optimizer": {"name": "lion", "lr": 0.003, "weight_decay": 0.1, "warmup": 2.0, "beta2": 0.99}},
    "adafactor": {"stage__optimizer": {"name": "adafactor", "lr": 0.02, "weight_decay": 0.1, "warmup": 2.0}},
    "groups and layers": {
        "stage__optimizer": {"lr": 0.01, "weight_decay": 0.3, "warmup": 2.0, "groups": [HALF_RATE], "layer_decay": 0.7}
    },
    "frozen": {
        "stage__freeze": ["*embed_tokens*", "model.layers.0.*"],
        "stage__optimizer": {"lr": 0.01, "warmup": 0.0},
    },
}


def losses_of(pool: Pool, job: jobs.Job) -> list[float]:
    ended = pool.run(jobs.attempt, job, 1)[0]
    assert ended.outcome == "Finished", ended.message
    return list(ended.losses.values())


@pytest.mark.parametrize("kind", KINDS)
def test_every_zero_stage_gives_the_losses_of_updates_by_hand(one: Pool, two: Pool, tmp_path: Path, kind: str) -> None:
    changes = {"stage__steps": 5, **KINDS[kind]}
    rows = jobs.dialogues(10)
    expected = one.run(cases.plain_losses, jobs.Job(tmp_path / "plain", jobs.spec(**changes), rows))[0]
    adamw = one.run(cases.plain_losses, jobs.Job(tmp_path / "adamw", jobs.spec(stage__steps=5), rows))[0]
    assert abs(expected[-1][0] - adamw[-1][0]) > 1e-3, "it is what there was without it: the test shows nothing"
    for zero, world in [(0, 1), (0, 2)] if kind == "adafactor" else [(0, 1), (1, 2), (2, 2), (3, 2)]:
        made = jobs.spec(**changes, deepspeed__zero=zero, resources={"per_node": world})
        found = losses_of(two if world == 2 else one, jobs.Job(tmp_path / f"{zero}-{world}", made, rows))
        assert found == pytest.approx([loss for loss, _ in expected], rel=2e-5), (zero, world)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stage__freeze": ["*"]}, "stage.freeze: matches all weights, and leaves nothing to train"),
        ({"stage__freeze": ["model.embed"]}, "`model.embed` matches no weight"),
        (
            {"stage__optimizer": {"groups": [{"match": ["model.layer.0.*"]}]}},
            "groups.0.match: `model.layer.0.*` matches no weight that is trained; there is model.layers.0.",
        ),
    ],
)
def test_a_pattern_that_means_nothing_is_refused_with_names_that_there_are(
    one: Pool, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    ended = one.run(jobs.attempt, jobs.Job(tmp_path, jobs.spec(**changes), jobs.dialogues(4)), 1)[0]
    assert ended.outcome == "InvalidSpec"
    assert said in ended.message


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd", "inverse_sqrt"])
def test_schedules_are_those_of_transformers(schedule: str) -> None:
    from torch import nn, optim
    from transformers.optimization import get_inverse_sqrt_schedule, get_scheduler, get_wsd_schedule

    optimizer = optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    steps, warm = 20, 5
    if schedule == "wsd":
        theirs: Any = get_wsd_schedule(
            optimizer, warm, num_decay_steps=4, num_training_steps=steps, decay_type="linear"
        )
    elif schedule == "inverse_sqrt":
        theirs = get_inverse_sqrt_schedule(optimizer, warm)
    else:
        theirs = get_scheduler(schedule, optimizer, warm, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    # They begin their warm-up at 0, with an update that changes nothing; we end it one update earlier.
    assert rates(steps, schedule=schedule, warmup=float(warm))[warm:] == pytest.approx(found[warm:])
