"""Whatever stands in whatever place of a spec or a pipeline, what comes back is a spec or a list of problems."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.contract.check import InvalidSpec, parse_spec
from worker.contract.pipeline import parse_pipeline
from worker.contract.spec import JobSpec

pytestmark = pytest.mark.quick

_LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.1, "targets": ["q_proj"]}
_DEEPSPEED = {"zero": 2, "offload": "cpu", "precision": "fp32", "config": {"zero_optimization": {"overlap_comm": True}}}
_ROLLOUT = {"prompts": 8, "slots": 2, "max_new_tokens": 8, "min_new_tokens": 1, "temperature": 0.7, "top_p": 0.9}
_TERMS = [
    {"model": {"from": "rm.model"}, "name": "liked", "deepspeed": _DEEPSPEED},
    {"service": "https://rewards.example/v1", "timeout": "5s", "patience": "1m", "batch": 4},
    {"function": "sentiment"},
    {"function": "exact_match"},
    {"function": "length", "of": 16, "weight": -0.5},
    {"function": "regex", "pattern": "a+"},
]
_REWARD = {"terms": _TERMS, "scale": "running", "clip": 5.0, "missing_eos": -1.0}
_COMMON = {
    "name": "a", "metadata": {"k": "v"}, "deepspeed": _DEEPSPEED,
    "resources": {"nodes": 1, "per_node": 2, "accelerator": "none", "cpu": "500m", "memory": "4Gi"},
    "retry": {"max_attempts": 2}, "checkpoint": {"every_steps": 5, "keep": 2, "grace": "5s"},
    "limits": {"wall_clock": "2h", "start": "1m", "stall": "1m"}, "queue": {"priority": 1},
}  # fmt: skip
_EVALUATE = {"data": "files/held-out", "every_steps": 5}
_SFT = {
    "type": "sft", "data": {"train": "files/talks", "truncate": True}, "steps": 4, "batch": 8, "micro_batch": 2,
    "model": {"config": {"model_type": "llama", "max_position_embeddings": 2048}, "tokenizer": "bytes"},
    "max_length": 64, "packing": True, "gradient_checkpointing": True, "seed": 1, "tensorboard": True,
    "optimizer": {
        "lr": 1e-3, "schedule": "linear", "warmup": 2, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99, "clip": 1.0,
    },
}  # fmt: skip
_RM = {"type": "reward", "model": {"from": "sft.model"}, "data": "files/pairs", "lora": _LORA, "center": 0.1}
_ROLE = {"lora": _LORA, "optimizer": {"lr": 1e-4}, "deepspeed": _DEEPSPEED, "gradient_checkpointing": True}
_PPO = {
    "type": "ppo",
    "actor": {"model": {"from": "sft.model"}, **_ROLE}, "critic": {"model": {"from": "rm.model"}, **_ROLE},
    "reference": {"from": "actor", "deepspeed": _DEEPSPEED}, "reward": _REWARD, "share_base": False,
    "data": {"prompts": "files/prompts", "ptx": "files/talks", "truncate": True}, "rollout": _ROLLOUT,
    "ppo": {"ptx": 0.5, "ema": 0.9, "minibatches": 2, "kl": {"coef": 0.1, "target": 6.0}},
    "guards": {}, "samples": {"per_step": 2, "total": 10}, "steps": 3, "max_length": 64, "seed": 2,
}  # fmt: skip
_TEST = {
    "type": "evaluate", "model": {"from": "ppo.model"}, "against": {"from": "sft.model"}, "reward": _REWARD,
    "data": {"test": "files/prompts", "truncate": True}, "rollout": _ROLLOUT, "max_length": 64,
}  # fmt: skip
_WALK = {"type": "rehearse", "output": True, "steps": 2, "fault": {"step": 1, "kind": "error", "attempt": 1}}
WHOLE: dict[str, Any] = {
    "name": "whole",
    "metadata": {"k": "v"},
    "steps": {
        "sft": {"stage": _SFT, **_COMMON, "name": "b", "evaluate": _EVALUATE},
        "rm": {"stage": _RM},
        "ppo": {"stage": _PPO, "resources": {"per_node": 2}, "evaluate": {"held_out": 0.2}},
        "test": {"stage": _TEST},
        "walk": {"stage": _WALK},
        "last": {"stage": {"type": "rehearse", "model": {"from": "walk.model"}}},
    },
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from(["steps/rm.model", "steps/.", "actor", "length", "bytes", "{", "9" * 400, "a.b"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["from", "type", "model", "function", "service", "config"]) | st.text(max_size=6),
                      inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a document, its own among them."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in inner:
        yield from places(entry, (*path, key))


def put(document: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A copy of the document with another value in this place."""
    if not path:
        return value
    made: Any = copy.deepcopy(document)
    at = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return made


def told(parse: Callable[[Any], Any], document: Any) -> None:
    """Reads the document; only InvalidSpec may come of it, and it says what is wrong."""
    try:
        parse(document)
    except InvalidSpec as refused:
        assert refused.problems
        assert all(problem.path and problem.message for problem in refused.problems)


def test_the_document_that_is_spoilt_below_is_right_as_it_stands() -> None:
    assert parse_pipeline(WHOLE).in_order()


STEPS = list(WHOLE["steps"].values())


def of_a_step(document: Any) -> JobSpec:
    return parse_spec(document, step=True)


@pytest.mark.parametrize(
    "value", [None, True, 3, float("nan"), "x", "steps/rm.model", [], {}, {"from": "rm.model"}], ids=repr
)
def test_each_kind_of_value_in_each_place_of_a_spec_is_told_of(value: Any) -> None:
    for step in STEPS:
        for path in places(step):
            told(of_a_step, put(step, path, value))


@settings(max_examples=60, deadline=None)
@given(path=st.sampled_from(list(places(WHOLE))), value=JSON, other=st.sampled_from(list(places(WHOLE))), more=JSON)
def test_any_two_values_in_any_two_places_of_a_pipeline_are_told_of(
    path: tuple[str | int, ...], value: Any, other: tuple[str | int, ...], more: Any
) -> None:
    spoilt = put(WHOLE, path, value)
    # The first may have taken the place of the second.
    with contextlib.suppress(TypeError, KeyError, IndexError, AttributeError):
        spoilt = put(spoilt, other, more)
    told(parse_pipeline, spoilt)


@pytest.mark.parametrize("key", [1, None, ("a", "b")])
def test_a_name_that_is_no_text_as_yaml_may_have_it_is_told_of(key: Any) -> None:
    for step in STEPS:
        for path in places(step):
            told(of_a_step, put(step, path, {key: "x"}))


def test_what_python_will_not_write_or_look_into_is_told_of() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    for value in (deep, 10**5000, -(10**5000)):
        told(of_a_step, put(STEPS[0], ("stage", "batch"), value))
        told(of_a_step, put(STEPS[0], ("stage", "model", "config", "x"), value))


@pytest.mark.parametrize("stage", ["ppo", "evaluate"])
@pytest.mark.parametrize(
    ("term", "says"),
    [
        ({"from": "rm.model"}, "such as `{model: {from: rm.model}}`"),
        ("models/liked", "such as `{model: models/liked}`"),
        ("sentiment", "such as `{function: sentiment}`"),
        ("https://rewards.example/v1", "such as `{service: URL}`"),
        (3, "must be an object"),
        (None, "must be an object"),
        (True, "must be an object"),
        ([], "must be an object"),
        ({}, "give one of `model`, `service` and `function`"),
        ({"function": ["length"]}, "give one of `model`, `service` and `function`"),
    ],
)
def test_a_reward_term_that_is_none_is_told_of_with_the_one_that_was_meant(stage: str, term: Any, says: str) -> None:
    spec = {"stage": {**(_PPO if stage == "ppo" else _TEST), "reward": {"terms": [{"function": "length"}, term]}}}
    if stage == "ppo":
        spec["resources"] = {"per_node": 2}
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(spec, step=True)
    [problem] = caught.value.problems
    assert problem.path == "stage.reward.terms.1" and says in problem.message


def test_a_field_of_another_kind_of_term_or_stage_is_not_called_misspelt() -> None:
    stage = {**_TEST, "reward": {"terms": [{"function": "length", "pattern": "x"}]}, "actor": {}}
    with pytest.raises(InvalidSpec) as caught:
        parse_spec({"stage": stage}, step=True)
    found = {problem.path: problem.message for problem in caught.value.problems}
    assert found["stage.reward.terms.0.pattern"] == "is no field of `length`; leave it out"
    assert found["stage.actor"].startswith("unknown field; known: ")
