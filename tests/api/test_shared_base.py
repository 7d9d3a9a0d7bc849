"""A PPO on one base, as it is POSTed: adapters where they will do, and of the actor's own weights alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from api.settings import Settings
from tests.api.conftest import Plane, write_adapter, write_model
from tests.api.test_inputs import refused, register
from worker.contract.manifest import describe

ADAPTER = "models/model-1adapter"


@pytest.fixture
async def prompts(plane: Plane) -> str:
    """Rows to learn from, uploaded."""
    sent = {"file": ("prompts.jsonl", b'{"prompt": "hello"}\n' * 8)}
    answer = await plane.http.post("/v1/files", data={"purpose": "train"}, files=sent)
    assert answer.status_code == 201, answer.text
    return f"files/{answer.json()['id']}"


async def base(plane: Plane, folder: Path) -> str:
    """The actor's model, registered. Gives its hash."""
    write_model(folder, positions=256)
    sha = describe(folder).sha256
    await register(plane, folder, name="base")
    return sha


def ppo(prompts: str, *, begins: str = "models/base", term: str = ADAPTER, **stage: Any) -> dict[str, Any]:
    lora: dict[str, Any] = {"lora": {}}
    made = {
        "type": "ppo", "actor": {"model": "models/base", **lora}, "critic": {"model": begins, **lora},
        "reward": {"terms": [{"model": term}]}, "data": prompts, "share_base": True, "max_length": 64,
        "rollout": {"prompts": 8, "max_new_tokens": 8},
    }  # fmt: skip
    return {"stage": made | stage}


async def test_an_adapter_of_the_actors_weights_is_taken_and_pinned(plane: Plane, tmp_path: Path, prompts: str) -> None:
    await register(plane, write_adapter(tmp_path / "a", await base(plane, tmp_path / "base")), kind="adapter")
    for critic in ("models/base", ADAPTER):
        as_trained = {"model": critic, "lora": {"rank": 8, "alpha": 16.0}}
        answer = await plane.http.post("/v1/jobs", json=ppo(prompts, critic=as_trained))
        assert answer.status_code == 201, answer.text
        assert answer.json()["inputs"]["stage.reward.terms.0.model"]["reference"] == ADAPTER


async def test_an_adapter_of_other_weights_is_refused_and_so_is_one_that_does_not_say(
    plane: Plane, settings: Settings, tmp_path: Path, prompts: str
) -> None:
    await base(plane, tmp_path / "base")
    other = write_adapter(settings.allowed_paths[0] / "other", "0" * 64)
    silent = write_adapter(settings.allowed_paths[0] / "silent")
    term = "stage.reward.terms.0.model"
    assert "another model than stage.actor.model" in (await refused(plane, ppo(prompts, term=str(other))))[term]
    assert "does not tell" in (await refused(plane, ppo(prompts, term=str(silent))))[term]
    (silent / "lineage.json").write_text(json.dumps({"spec": {"stage": {"type": "classify"}}}))
    assert "holds a classifier's adapter" in (await refused(plane, ppo(prompts, term=str(silent))))[term]


async def test_without_a_shared_base_an_adapter_is_no_reward_model_and_a_whole_critic_shares_none(
    plane: Plane, tmp_path: Path, prompts: str
) -> None:
    await register(plane, write_adapter(tmp_path / "a", await base(plane, tmp_path / "base")), kind="adapter")
    found = await refused(plane, ppo(prompts, share_base=False))
    assert "only the adapter of a reward model" in found["stage.reward.terms.0.model"]
    folder = write_model(tmp_path / "whole")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForSequenceClassification"]}))
    await register(plane, folder, 2, name="whole")
    found = await refused(plane, ppo(prompts, begins="models/whole@2"))
    assert "give the actor's model, or a reward model's adapter" in found["stage.critic.model"]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"actor": {"model": "models/base"}}, "stage.actor.lora"),
        ({"critic": {"model": "models/base", "lora": {}, "deepspeed": {"zero": 3}}}, "stage.critic.deepspeed.zero"),
        (
            {"critic": {"model": "models/base", "lora": {}, "deepspeed": {"precision": "fp32"}}},
            "stage.critic.deepspeed.precision",
        ),
    ],
)
async def test_what_cannot_stand_on_one_base_is_refused_with_its_path(
    plane: Plane, tmp_path: Path, prompts: str, changes: dict[str, Any], path: str
) -> None:
    await register(plane, write_adapter(tmp_path / "a", await base(plane, tmp_path / "base")), kind="adapter")
    assert list(await refused(plane, ppo(prompts, **changes))) == [path]


async def test_an_adapter_has_the_settings_of_the_critic_and_the_engine_of_the_actor(
    plane: Plane, tmp_path: Path, prompts: str
) -> None:
    await register(plane, write_adapter(tmp_path / "a", await base(plane, tmp_path / "base")), kind="adapter")
    found = await refused(plane, ppo(prompts, begins=ADAPTER))
    assert found == {"stage.critic.lora": f"the adapter {ADAPTER} has rank 8 and alpha 16; write these"}
    term = {"model": ADAPTER, "deepspeed": {"zero": 1}}
    found = await refused(plane, ppo(prompts, reward={"terms": [{"function": "length"}, term]}))
    assert list(found) == ["stage.reward.terms.1.deepspeed"]


async def test_what_is_no_plain_adapter_is_refused_also_where_a_model_does_not_tell_what_it_is(
    plane: Plane, settings: Settings, tmp_path: Path, prompts: str
) -> None:
    sha = await base(plane, tmp_path / "base")
    dora = write_adapter(settings.allowed_paths[0] / "dora", sha, use_dora=True)
    assert "use_dora" in (await refused(plane, ppo(prompts, term=str(dora))))["stage.reward.terms.0.model"]
    good = write_adapter(settings.allowed_paths[0] / "good", sha)
    silent = write_model(settings.allowed_paths[0] / "silent", positions=256)
    found = await refused(plane, ppo(prompts, begins=str(silent), term=str(good)))
    assert "is no adapter; give the actor's model" in found["stage.critic.model"]


async def test_the_estimate_counts_the_base_once(plane: Plane, settings: Settings, tmp_path: Path) -> None:
    from tests.api.test_estimate import LLAMA

    folder = write_model(tmp_path / "base")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    sha = describe(folder).sha256
    await register(plane, folder, name="base")
    await register(plane, write_adapter(tmp_path / "a", sha), kind="adapter")
    answer = await plane.http.post("/v1/estimate", json=ppo("files/none-yet", max_length=32))
    assert answer.status_code == 200, answer.text
    roles = {role["role"]: role["parameters"] for role in answer.json()["roles"]}
    assert roles["reward.0"] == 2 * 8 * (64 + 64) + 64 and roles["critic"] < roles["actor"]
