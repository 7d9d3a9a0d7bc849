"""What the steps of a pipeline will hand over is foreseen, and what cannot come of it is refused before any begins."""

import json
from pathlib import Path
from typing import Any

import pytest

from api.settings import Settings
from tests.api.conftest import Plane, paths, write_adapter, write_model
from tests.api.test_inputs import register
from worker.contract.check import InvalidSpec
from worker.contract.manifest import describe
from worker.contract.order import Input
from worker.contract.pipeline import parse_pipeline

ROWS = {
    "talks": '{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}\n',
    "pairs": '{"prompt": "2+2?", "chosen": "4", "rejected": "5"}\n',
    "prompts": '{"prompt": "2+2?"}\n',
}
LENGTH = {"terms": [{"function": "length"}]}


@pytest.fixture
def data(settings: Settings) -> dict[str, str]:
    """A file of each kind of rows."""
    folder = settings.allowed_paths[0]
    for name, row in ROWS.items():
        (folder / f"{name}.jsonl").write_text(row * 8)
    return {name: str(folder / f"{name}.jsonl") for name in ROWS}


def scratch(positions: int | None = 64) -> dict[str, Any]:
    told = {} if positions is None else {"max_position_embeddings": positions}
    return {"config": {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, **told}}


def pipeline(data: dict[str, str], base: Any = None, **lengths: int) -> dict[str, Any]:
    """SFT, a reward model and PPO; `lengths` are max_length by the steps' names, 64 where nothing is said."""

    def longest(step: str) -> dict[str, int]:
        return {"max_length": lengths.get(step, 64)}

    sft = {"type": "sft", "model": base or scratch(), "data": data["talks"], **longest("sft")}
    rm = {"type": "reward", "model": {"from": "sft.model"}, "data": data["pairs"], **longest("rm")}
    ppo = {
        "type": "ppo", "actor": {"model": {"from": "sft.model"}}, "critic": {"model": {"from": "rm.model"}},
        "reward": {"terms": [{"model": {"from": "rm.model"}}]}, "data": data["prompts"],
        "rollout": {"prompts": 8, "max_new_tokens": 8}, "ppo": {"ema": 0.9}, **longest("ppo"),
    }  # fmt: skip
    return {"name": "p", "steps": {"ppo": {"stage": ppo}, "rm": {"stage": rm}, "sft": {"stage": sft}}}


def evaluation(model: str, rows: str, **stage: Any) -> dict[str, Any]:
    made = {"type": "evaluate", "model": {"from": model}, "data": rows, "max_length": 64}
    return {"stage": made | {"rollout": {"max_new_tokens": 8}} | stage}


async def inputs(plane: Plane, document: Any) -> dict[str, dict[str, Input]]:
    return await plane.control.resolver.resolve_steps(parse_pipeline(document), "default")


async def refused(plane: Plane, document: Any) -> dict[str, str]:
    """What is wrong, by path."""
    with pytest.raises(InvalidSpec) as caught:
        await inputs(plane, document)
    return {problem.path: problem.message for problem in caught.value.problems}


async def test_the_positions_of_the_first_model_hold_for_all_that_comes_of_it(
    plane: Plane, data: dict[str, str], settings: Settings, tmp_path: Path
) -> None:
    await register(plane, write_model(tmp_path / "m", positions=64))
    by_path = str(write_model(settings.allowed_paths[0] / "m", positions=64))
    for base in (scratch(64), "models/good", by_path):
        found = await inputs(plane, pipeline(data, base))
        assert list(found) == ["ppo", "rm", "sft"] and list(found["rm"]) == ["stage.data.train"]
        assert "64 positions" in (await refused(plane, pipeline(data, base, rm=65)))["steps.rm.stage.max_length"]
        document = pipeline(data, base, ppo=65)
        for output in ("model", "critic", "ema"):
            rows, reward = (data["pairs"], None) if output == "critic" else (data["prompts"], LENGTH)
            document["steps"][f"test-{output}"] = evaluation(f"ppo.{output}", rows, max_length=65, reward=reward)
        found_wrong = await refused(plane, document)
        assert set(found_wrong) == {
            f"steps.{step}.stage.max_length" for step in ("ppo", "test-model", "test-critic", "test-ema")
        }


async def test_what_a_configuration_leaves_out_is_known_by_its_family(plane: Plane, data: dict[str, str]) -> None:
    await inputs(plane, pipeline(data, scratch(None), rm=2048))
    found = await refused(plane, pipeline(data, scratch(None), rm=2049))
    assert "2048 positions" in found["steps.rm.stage.max_length"]


async def test_of_two_models_that_meet_each_has_its_own_positions(plane: Plane, data: dict[str, str]) -> None:
    document = pipeline(data, scratch(256), ppo=128)
    document["steps"]["small"] = {"stage": {**document["steps"]["sft"]["stage"], "model": scratch(64)}}
    await inputs(plane, document)
    document["steps"]["ppo"]["stage"]["reference"] = {"from": "small.model"}
    found = await refused(plane, document)
    assert found == {"steps.ppo.stage.max_length": "small.model has 64 positions; write at most that, not 128"}


async def test_a_step_is_evaluated_on_the_rows_that_its_model_is_for(plane: Plane, data: dict[str, str]) -> None:
    document = pipeline(data)
    document["steps"] |= {
        "talks": evaluation("ppo.model", data["talks"]),
        "pairs": evaluation("rm.model", data["pairs"]),
        "critic": evaluation("ppo.critic", data["pairs"]),
        "prompts": evaluation("ppo.ema", data["prompts"], reward=LENGTH, against={"from": "sft.model"}),
    }
    await inputs(plane, document)
    document["steps"] |= {
        "a": evaluation("sft.model", data["pairs"]),
        "b": evaluation("rm.model", data["talks"]),
        "c": evaluation("ppo.critic", data["prompts"], reward=LENGTH),
        "d": evaluation("ppo.model", data["prompts"]),
    }
    found = await refused(plane, document)
    assert set(found) == {
        "steps.a.stage.model", "steps.b.stage.model", "steps.c.stage.model", "steps.d.stage.reward",
    }  # fmt: skip
    assert "is a language model; the rows have `chosen`" in found["steps.a.stage.model"]


async def test_all_that_is_wrong_from_outside_and_between_steps_is_told_at_once(
    plane: Plane, data: dict[str, str]
) -> None:
    document = pipeline(data, rm=65)
    document["steps"]["ppo"]["stage"]["reward"]["terms"] += [
        {"function": "regex", "pattern": "("}, {"function": "exact_match"},
    ]  # fmt: skip
    document["steps"]["odd"] = {"stage": {"type": "sft", "model": "models/none", "data": data["pairs"]}}
    document["steps"]["next"] = {"stage": {"type": "sft", "model": {"from": "odd.model"}, "data": data["talks"]}}
    assert set(await refused(plane, document)) == {
        "steps.rm.stage.max_length", "steps.ppo.stage.reward.terms.1.pattern", "steps.ppo.stage.data.prompts",
        "steps.odd.stage.model", "steps.odd.stage.data.train",
    }  # fmt: skip


async def test_adapters_stand_beside_layers_that_the_model_will_have(
    plane: Plane, data: dict[str, str], settings: Settings
) -> None:
    document = pipeline(data)
    ppo = document["steps"]["ppo"]["stage"]
    ppo["actor"]["lora"] = {"targets": ["q_proj", "self_attn.v_proj", "lm_head"]}
    await inputs(plane, document)
    ppo["actor"]["lora"], ppo["critic"]["lora"] = {"targets": ["q_proj", "c_attn"]}, {"targets": ["x{}"]}
    folder = write_model(settings.allowed_paths[0] / "gpt2", positions=256)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    sft = {"type": "sft", "model": str(folder), "data": data["talks"], "max_length": 64}
    document["steps"]["alone"] = {"stage": sft | {"lora": {"targets": ["q_proj"]}}}
    document["steps"]["other"] = {"stage": sft | {"lora": {"targets": ["c_attn"]}}}
    found = await refused(plane, document)
    assert set(found) == {
        "steps.ppo.stage.actor.lora.targets", "steps.ppo.stage.critic.lora.targets", "steps.alone.stage.lora.targets",
    }  # fmt: skip
    assert found["steps.ppo.stage.actor.lora.targets"] == (
        "sft.model has no linear layer `c_attn`; it has: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )


def shared(data: dict[str, str], actor: Any, ranked: Any) -> dict[str, Any]:
    """A PPO on one base, whose reward model is an adapter that the step before it trains on `ranked`."""
    document = pipeline(data)
    document["steps"]["rm"]["stage"] |= {"model": ranked, "lora": {}}
    role = {"model": actor, "lora": {}}
    reward = {"terms": [{"model": {"from": "rm.adapter"}}]}
    document["steps"]["ppo"]["stage"] |= {"actor": role, "critic": role, "reward": reward, "share_base": True}
    return document


async def test_an_adapter_that_will_be_trained_on_another_model_than_the_actors_is_refused(
    plane: Plane, data: dict[str, str], tmp_path: Path
) -> None:
    await register(plane, write_model(tmp_path / "m1"), 1)
    await register(plane, write_model(tmp_path / "m2", positions=128), 2)
    term = "steps.ppo.stage.reward.terms.0.model"
    # One model may have two names.
    await inputs(plane, shared(data, "models/good", "models/good@2"))
    await inputs(plane, shared(data, {"from": "sft.model"}, {"from": "sft.model"}))
    assert "another model" in (await refused(plane, shared(data, "models/good@1", "models/good")))[term]
    # A base that is not there is one problem, and none of the adapter's.
    assert set(await refused(plane, shared(data, "models/good", "models/none"))) == {"steps.rm.stage.model"}


async def test_an_adapter_that_is_there_is_of_no_model_that_is_yet_to_be_made(
    plane: Plane, data: dict[str, str], settings: Settings
) -> None:
    base = write_model(settings.allowed_paths[0] / "base", positions=256)
    adapter = str(write_adapter(settings.allowed_paths[0] / "adapter", describe(base).sha256))
    document = shared(data, {"from": "sft.model"}, {"from": "sft.model"})
    document["steps"]["ppo"]["stage"]["reward"]["terms"].append({"model": adapter, "name": "old"})
    found = await refused(plane, document)
    assert list(found) == ["steps.ppo.stage.reward.terms.1.model"]
    assert "yet to be made" in found["steps.ppo.stage.reward.terms.1.model"]


async def test_a_configuration_that_tells_nonsense_is_no_fault_of_the_servers(
    plane: Plane, data: dict[str, str], settings: Settings
) -> None:
    folder = write_model(settings.allowed_paths[0] / "odd")
    for config in (
        {"max_position_embeddings": "x", "architectures": 3},
        {"architectures": [None]},
        {"text_config": []},
    ):
        (folder / "config.json").write_text(json.dumps(config))
        await inputs(plane, pipeline(data, str(folder)))


async def test_what_is_foreseen_is_refused_when_it_is_posted_and_nothing_is_made(
    plane: Plane, data: dict[str, str]
) -> None:
    document = pipeline(data, rm=65)
    for query in ("", "?dry_run=true"):
        answer = await plane.http.post(f"/v1/pipelines{query}", json=document)
        assert answer.status_code == 422 and paths(answer) == ["steps.rm.stage.max_length"]
    assert (await plane.http.get("/v1/jobs")).json()["data"] == []
    dry = await plane.http.post("/v1/pipelines?dry_run=true", json=pipeline(data))
    assert dry.status_code == 200 and dry.json()["order"] == ["sft", "rm", "ppo"]
    assert (await plane.http.post("/v1/pipelines", json=pipeline(data))).status_code == 201
