"""A pipeline's spec, checked as a whole: names, outputs, their kinds, and circles."""

from typing import Any

import pytest

from worker.contract.check import InvalidSpec, parse_spec
from worker.contract.pipeline import parse_pipeline
from worker.contract.steps import needs, outputs

pytestmark = pytest.mark.quick

TINY = {"config": {"model_type": "llama", "hidden_size": 8}}


def sft(model: Any = TINY, **stage: Any) -> dict[str, Any]:
    return {"stage": {"type": "sft", "model": model, "data": "files/talks", **stage}}


def reward(model: Any, **stage: Any) -> dict[str, Any]:
    return {"stage": {"type": "reward", "model": model, "data": "files/pairs", **stage}}


def ppo(actor: str, scorer: str, /, **stage: Any) -> dict[str, Any]:
    return {
        "stage": {
            "type": "ppo",
            "actor": {"model": {"from": actor}},
            "critic": {"model": {"from": scorer}},
            "reference": {"from": "actor"},
            "reward": {"terms": [{"model": {"from": scorer}}, {"function": "length", "weight": -0.1}]},
            "data": "files/prompts",
            **stage,
        }
    }


def whole(**steps: Any) -> dict[str, Any]:
    return {"name": "dolly", "steps": steps}


def wrong(document: Any) -> dict[str, str]:
    """What is wrong, by path."""
    with pytest.raises(InvalidSpec) as caught:
        parse_pipeline(document)
    return {problem.path: problem.message for problem in caught.value.problems}


RLHF = whole(ppo=ppo("sft.model", "rm.model"), rm=reward({"from": "sft.model"}), sft=sft())


def test_steps_are_put_into_an_order_in_which_each_follows_what_it_needs() -> None:
    spec = parse_pipeline(RLHF)
    assert spec.in_order() == ["sft", "rm", "ppo"]
    assert [spec.name_of(step) for step in spec.in_order()] == ["dolly-sft", "dolly-rm", "dolly-ppo"]
    assert {(need.path, need.step, need.output) for need in needs(spec.steps["ppo"])} == {
        ("stage.actor.model", "sft", "model"),
        ("stage.critic.model", "rm", "model"),
        ("stage.reward.terms.0.model", "rm", "model"),
    }


def test_a_reference_may_be_written_in_either_way_and_reads_back_from_what_is_stored() -> None:
    spec = parse_pipeline(RLHF).steps["rm"]
    assert spec.stage.model == "steps/sft.model"  # type: ignore[union-attr]
    assert parse_spec(spec.model_dump(mode="json"), step=True) == spec
    assert parse_spec(reward("steps/sft.model"), step=True).stage == spec.stage


def test_the_reference_of_a_ppo_may_be_a_steps_output_or_the_actor() -> None:
    document = whole(sft=sft(), rm=reward({"from": "sft.model"}), base=sft())
    for source, expected in (({"from": "base.model"}, "steps/base.model"), ({"from": "actor"}, None)):
        document["steps"]["ppo"] = ppo("sft.model", "rm.model", reference=source)
        assert parse_pipeline(document).steps["ppo"].stage.reference.model == expected  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("spec", "kinds"),
    [
        (sft(), {"model"}),
        (sft("m", lora={}), {"model", "adapter"}),
        (reward("m"), {"model"}),
        (ppo("a.model", "b.model"), {"model", "critic"}),
        (ppo("a.model", "b.model", ppo={"ema": 0.9}), {"model", "critic", "ema"}),
        ({"stage": {"type": "evaluate", "model": "m", "data": "files/x"}}, set()),
        ({"stage": {"type": "rehearse"}}, set()),
        ({"stage": {"type": "rehearse", "output": True}}, {"model"}),
    ],
)
def test_each_stage_hands_over_what_it_makes(spec: dict[str, Any], kinds: set[str]) -> None:
    assert set(outputs(parse_spec(spec, step=True))) == kinds


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("rm.model", "is a reward model; give a language model"),
        ("stf.model", "did you mean `sft`?"),
        ("nothing.model", "there is no step `nothing`"),
        ("sft.ema", "`sft` (sft) has no output `ema`; it hands over: model"),
        ("sft.adapter", "has no output `adapter`"),
        ("judge.model", "it hands over nothing"),
        ("sft", "write STEP.OUTPUT, such as sft.model"),
        ("last.model", "itself"),
        ("walk.model", "is a rehearsal's"),
    ],
)
def test_a_reference_that_cannot_be_is_told_with_what_would_be_right(model: str, says: str) -> None:
    judge = {"stage": {"type": "evaluate", "model": {"from": "sft.model"}, "data": "files/x"}}
    walk = {"stage": {"type": "rehearse", "output": True}}
    rm = reward({"from": "sft.model"})
    found = wrong(whole(sft=sft(), rm=rm, judge=judge, walk=walk, last=sft({"from": model})))
    assert list(found) == ["steps.last.stage.model"] and says in found["steps.last.stage.model"]


def on_a_shared_base(rm: dict[str, Any], critic: str = "sft.model", term: str = "rm.adapter") -> dict[str, Any]:
    """SFT, a reward model, and a PPO whose roles are adapters on what SFT made."""
    lora: dict[str, Any] = {"lora": {}}
    stage: dict[str, Any] = {
        "actor": {"model": {"from": "sft.model"}, **lora}, "critic": {"model": {"from": critic}, **lora},
        "reward": {"terms": [{"model": {"from": term}}]}, "share_base": True,
    }  # fmt: skip
    return whole(sft=sft(lora={}, model="org/m"), rm=rm, ppo=ppo("sft.model", "rm.model", **stage))


def test_a_shared_base_takes_the_adapters_that_were_trained_on_it() -> None:
    rm = reward({"from": "sft.model"}, lora={})
    parse_pipeline(on_a_shared_base(rm))
    parse_pipeline(on_a_shared_base(rm, critic="rm.adapter"))
    # A reward model of its own may stand beside.
    parse_pipeline(on_a_shared_base(reward("org/other"), term="rm.model"))
    critic, term = "steps.ppo.stage.critic.model", "steps.ppo.stage.reward.terms.0.model"
    assert "give the actor's model" in wrong(on_a_shared_base(rm, critic="rm.model"))[critic]
    assert "an adapter alone" in wrong(on_a_shared_base(rm, term="sft.adapter"))[term]
    other = wrong(on_a_shared_base(reward("org/other", lora={})))
    assert list(other) == [term] and "must be the same model" in other[term]


def test_a_critic_that_goes_on_from_an_adapter_has_its_settings() -> None:
    lora, targets = "steps.ppo.stage.critic.lora", "steps.ppo.stage.critic.lora.targets"
    rm = reward({"from": "sft.model"}, lora={"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj"]})
    document = on_a_shared_base(rm, critic="rm.adapter")
    assert wrong(document) == {lora: "the adapter rm.adapter has rank 4 and alpha 8; write these"}
    critic = document["steps"]["ppo"]["stage"]["critic"]
    critic["lora"] = {"rank": 4, "alpha": 8.0}
    parse_pipeline(document)
    critic["lora"]["targets"] = ["q_proj"]
    assert wrong(document) == {targets: "the adapter rm.adapter is of q_proj, v_proj; write these"}
    critic["lora"]["targets"] = ["v_proj", "q_proj"]
    parse_pipeline(document)


def test_a_term_on_a_shared_base_has_no_engine_of_its_own() -> None:
    document = on_a_shared_base(reward({"from": "sft.model"}, lora={}))
    [term] = document["steps"]["ppo"]["stage"]["reward"]["terms"]
    term["deepspeed"] = {"precision": "fp32"}
    [(path, message)] = wrong(document).items()
    assert path == "steps.ppo.stage.reward.terms.0.deepspeed" and "leave it out" in message


def test_an_adapter_is_a_reward_on_a_shared_base_alone() -> None:
    document = on_a_shared_base(reward({"from": "sft.model"}, lora={}))
    del document["steps"]["ppo"]["stage"]["share_base"]
    assert "a reward model's adapter alone" in wrong(document)["steps.ppo.stage.reward.terms.0.model"]


def test_an_adapter_is_no_model_to_go_on_from() -> None:
    found = wrong(whole(a=sft("m", lora={}), b=sft({"from": "a.adapter"})))
    assert "an adapter alone" in found["steps.b.stage.model"]


def test_a_reward_that_is_no_reward_model_is_told() -> None:
    found = wrong(whole(sft=sft(), ppo=ppo("sft.model", "sft.model")))
    assert found == {"steps.ppo.stage.reward.terms.0.model": "sft.model is a language model; give a reward model"}


def test_steps_that_wait_for_each_other_in_a_circle_are_told() -> None:
    found = wrong(whole(a=sft({"from": "c.model"}), b=sft({"from": "a.model"}), c=sft({"from": "b.model"})))
    [(path, message)] = found.items()
    assert path.startswith("steps.") and message.startswith("waits for itself: ") and message.count("->") == 3


def test_all_that_is_wrong_in_all_steps_is_told_at_once() -> None:
    found = wrong(
        whole(a=sft(batch=0), b=sft("m", lora={"rnak": 1}), c=sft({"from": "d.model"}, data={"from": "a.model"}))
    )
    assert set(found) == {
        "steps.a.stage.batch", "steps.b.stage.lora.rnak", "steps.c.stage.model", "steps.c.stage.data.train",
    }  # fmt: skip


def test_the_shape_of_the_whole_is_checked() -> None:
    assert set(wrong({"steps": {}})) == {"steps"}
    assert set(wrong({"name": "x"})) == {"steps"}
    assert set(wrong([])) == {"(the whole)"}
    assert set(wrong({"steps": {"A.b": sft()}, "stpes": 1})) == {"steps.A.b", "stpes"}
    assert set(wrong({"steps": {"a": [sft()]}})) == {"steps.a"}


def test_two_steps_of_one_name_are_refused() -> None:
    assert set(wrong(whole(a={**sft(), "name": "x"}, b={**sft(), "name": "x"}))) == {"steps.b.name"}
    assert set(wrong({"name": "n" * 60, "steps": {"step": sft()}})) == {"steps.step.name"}


@pytest.mark.parametrize("model", [{"from": "sft.model"}, "steps/sft.model"])
def test_a_step_outside_a_pipeline_is_refused_with_a_sentence(model: Any) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(sft(model))
    [problem] = caught.value.problems
    assert problem.path == "stage.model" and "only a step of a pipeline" in problem.message
