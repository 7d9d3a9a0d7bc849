"""A spec that is wrong is refused whole: every problem at once, each with its path and what would be right."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.contract.check import InvalidSpec, parse_spec
from worker.contract.spec import JobSpec

pytestmark = pytest.mark.quick

WHOLE = {"stage": {"type": "sft", "model": "models/base", "data": "files/file-abc"}}


def sft(**fields: Any) -> dict[str, Any]:
    return {"stage": {**WHOLE["stage"], **fields}}


def evaluation(**fields: Any) -> dict[str, Any]:
    reward = {"terms": [{"function": "length"}]}
    return {"stage": {"type": "evaluate", "model": "models/base", "data": "files/x", "reward": reward, **fields}}


def problems(data: Any) -> dict[str, str]:
    with pytest.raises(InvalidSpec) as refused:
        parse_spec(data)
    return {p.path: p.message for p in refused.value.problems}


def test_packed_rows_on_a_processor_are_taken_a_thousand_tokens_at_a_time() -> None:
    def rows(max_length: int, accelerator: str = "none") -> int:
        stage = {"type": "sft", "model": "a", "data": "files/x", "packing": True, "batch": 16, "max_length": max_length}
        return parse_spec({"stage": stage, "resources": {"accelerator": accelerator}}).micro_batch

    assert [rows(64), rows(256), rows(512), rows(4096)] == [8, 4, 2, 1]
    assert rows(4096, "nvidia.com/gpu") == 8


def test_type_model_and_data_are_a_whole_spec() -> None:
    spec = parse_spec(WHOLE)
    assert (spec.title, spec.micro_batch, spec.accumulation, spec.lr) == ("sft", 8, 1, 2e-5)


def test_the_default_learning_rate_follows_the_method() -> None:
    assert parse_spec(sft(lora={})).lr == 2e-4
    assert parse_spec(sft(type="pretrain")).lr == 3e-4
    assert parse_spec(sft(optimizer={"lr": 1e-3})).lr == 1e-3


@pytest.mark.parametrize(
    ("batch", "ranks", "micro_batch", "accumulation"),
    [(8, 1, 8, 1), (8, 2, 4, 1), (48, 2, 8, 3), (26, 2, 1, 13), (7, 1, 7, 1), (11, 1, 1, 11)],
)
def test_the_micro_batch_is_the_largest_that_divides_a_ranks_share(
    batch: int, ranks: int, micro_batch: int, accumulation: int
) -> None:
    spec = parse_spec({**sft(batch=batch), "resources": {"per_node": ranks}})
    assert (spec.micro_batch, spec.accumulation) == (micro_batch, accumulation)
    assert spec.micro_batch * spec.accumulation * ranks == batch


def test_every_problem_is_said_at_once_with_its_path() -> None:
    found = problems(
        {
            "nmae": "x",
            "stage": {
                "type": "sft", "model": "../secret", "data": "files/x", "steps": 3, "epochs": 2, "batchh": 4,
                "optimizer": {"lr": math.nan},
            },
            "resources": {"per_node": 3},
            "limits": {"stall": "7 parsecs"},
        }
    )  # fmt: skip
    assert found["nmae"] == "unknown field; did you mean `name`?"
    assert found["stage.batchh"] == "unknown field; did you mean `batch`?"
    assert "finite" in found["stage.optimizer.lr"]
    assert "`..`" in found["stage.model"]
    assert "30m" in found["limits.stall"]


def test_a_field_that_is_wrong_does_not_hide_a_mix_that_is_wrong() -> None:
    found = problems({**sft(steps=3, epochs=2, batchh=4), "resources": {"per_node": 3}})
    assert set(found) == {"stage.batchh", "stage.epochs", "stage.batch"}


@pytest.mark.parametrize(
    ("change", "path", "says"),
    [
        (sft(steps=1, epochs=1), "stage.epochs", "not both"),
        (sft(batch=8, micro_batch=3), "stage.micro_batch", "divide a rank's share of the batch, 8 rows"),
        ({**sft(batch=3), "resources": {"per_node": 2}}, "stage.batch", "multiple of 2"),
        (sft(lora={}, model={"config": {"model_type": "llama"}}), "stage.lora", "from scratch"),
        (sft(model={"config": {}}), "stage.model.config.model_type", "architecture"),
        (sft(model={"config": {"model_type": "gpt2", "vocab_size": 9}}), "stage.model.config.vocab_size", "tokenizer"),
        (
            sft(max_length=65, model={"config": {"model_type": "llama", "max_position_embeddings": 64}}),
            "stage.max_length",
            "at most 64",
        ),
        (sft(optimizer={"warmup": 1.5}), "stage.optimizer.warmup", "whole number"),
        (sft(steps=5, optimizer={"warmup": 6}), "stage.optimizer.warmup", "at most `steps`"),
        (
            {**sft(optimizer={"name": "adafactor"}), "deepspeed": {"precision": "fp32"}},
            "stage.optimizer.lr",
            "no stage has a default",
        ),
        (sft(optimizer={"name": "adafactor", "lr": 0.01}), "stage.optimizer.name", "needs whole matrices"),
        (sft(optimizer={"name": "lion", "eps": 1e-6}), "stage.optimizer.eps", "lion has no such setting"),
        (
            sft(optimizer={"schedule": "wsd", "warmup": 0.5, "decay": 0.8}),
            "stage.optimizer.decay",
            "at most 0.5 are left",
        ),
        (sft(lora={}, freeze=["*"]), "stage.freeze", "leave one of the two out"),
        (
            sft(type="distill", teacher={"model": "org/large", "deepspeed": {"offload": "cpu"}}),
            "stage.teacher.deepspeed.offload",
            "needs stage.teacher.deepspeed.zero 1, 2 or 3",
        ),
        ({**WHOLE, "deepspeed": {"offload": "cpu"}}, "deepspeed.offload", "deepspeed.zero"),
        ({**WHOLE, "deepspeed": {"config": {"bf16": {}}}}, "deepspeed.config.bf16", "deepspeed.precision"),
        ({**WHOLE, "deepspeed": {"config": {"foo": 1}}}, "deepspeed.config.foo", "unknown field; known: communication"),
        ({**WHOLE, "[": 1}, "[", "unknown field; known: checkpoint"),
        (
            {**WHOLE, "deepspeed": {"config": {"zero_optimization": {"reduce_bucket_size": "x"}}}},
            "deepspeed.config.zero_optimization.reduce_bucket_size",
            "whole number",
        ),
        (
            {**WHOLE, "deepspeed": {"config": {"zero_optimization": {"cpu_offload": True}}}},
            "deepspeed.config.zero_optimization.cpu_offload",
            "deepspeed.offload",
        ),
        (
            {**WHOLE, "deepspeed": {"config": {"zero_optimization": {"stage": 3}}}},
            "deepspeed.config.zero_optimization.stage",
            "deepspeed.zero",
        ),
        ({**WHOLE, "evaluate": {}}, "evaluate", "`data` and `held_out`"),
        ({**WHOLE, "evaluate": {"data": "files/a", "held_out": 0.1}}, "evaluate", "`data` and `held_out`"),
        ({"stage": {"type": "rehearse"}, "evaluate": {"held_out": 0.1}}, "evaluate", "rehearse"),
        (sft(type="pretrain", packing=False), "stage.packing", "True"),
        (sft(max_length="7"), "stage.max_length", "whole number"),
        (sft(steps=True), "stage.steps", "whole number"),
        (sft(model=3), "stage.model", "must be a string or an object"),
        (sft(data=3), "stage.data", "must be an object"),
        (sft(model=" x"), "stage.model", "blanks"),
        ({"stage": {"type": "ppo2"}}, "stage.type", "one of pretrain, sft, reward, "),
        ({}, "stage", "is required"),
        ({**WHOLE, "name": "Über"}, "name", "lower-case"),
        ({**WHOLE, "resources": {"memory": "lots"}}, "resources.memory", "16Gi"),
        ({**WHOLE, "resources": {"memory": "0"}}, "resources.memory", "above 0"),
        ({**WHOLE, "limits": {"wall_clock": -1}}, "limits.wall_clock", "greater than 0"),
        ({**WHOLE, "metadata": {"k": 1}}, "metadata.k", "string"),
        (sft(model={"config": {"model_type": "gpt2", "x": math.inf}}), "stage.model.config.x", "finite"),
        (sft(lora={"targets": []}), "stage.lora.targets", "at least 1 item"),
        # What a configuration leaves out is its family's default.
        (sft(max_length=2049, model={"config": {"model_type": "llama"}}), "stage.max_length", "at most 2048"),
        (sft(max_length=9, model={"config": {"model_type": "bloom", "seq_length": 8}}), "stage.max_length", "most 8"),
        (sft(epochs=10_001), "stage.epochs", "at most 10,000"),
        ({**sft(), "deepspeed": {"zero": 2, "config": {"prescale_gradients": True}}},
         "deepspeed.config.prescale_gradients", "reduce_scatter: false"),
    ],
)  # fmt: skip
def test_an_impossible_spec_is_refused_with_its_path_and_what_would_be_right(change: Any, path: str, says: str) -> None:
    found = problems(change)
    assert says in found[path], found
    assert len(found) == 1, found


@pytest.mark.parametrize("data", [None, [], "spec", 3])
def test_what_is_no_object_is_refused(data: Any) -> None:
    assert problems(data) == {"(the whole)": "must be an object"}


@pytest.mark.parametrize(("written", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("24h", 86400), (60, 60)])
def test_durations_are_read_in_seconds(written: Any, seconds: float) -> None:
    assert parse_spec({**WHOLE, "limits": {"stall": written}}).limits.stall == seconds


def test_a_stored_spec_reads_back_as_itself() -> None:
    spec = parse_spec({**sft(lora={"rank": 4}, steps=7), "limits": {"wall_clock": "2h"}, "checkpoint": {"grace": "5s"}})
    assert parse_spec(spec.model_dump(mode="json")) == spec


def test_what_deepspeed_may_be_told_is_passed_on() -> None:
    told = {"zero_optimization": {"reduce_bucket_size": 1000}}
    spec = parse_spec({**WHOLE, "deepspeed": {"zero": 2, "config": told}})
    assert spec.deepspeed.config.model_dump(exclude_none=True) == told


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(sorted(JobSpec.model_fields))


@settings(max_examples=300, deadline=None)
@given(
    top=st.dictionaries(FIELDS, JSON, max_size=3),
    stage=st.dictionaries(st.text(max_size=12) | FIELDS, JSON, max_size=3),
)
def test_whatever_is_posted_is_a_spec_or_a_list_of_problems(top: dict[str, Any], stage: dict[str, Any]) -> None:
    try:
        parse_spec({**WHOLE, **top, "stage": {**WHOLE["stage"], **stage}})
    except InvalidSpec as refused:
        assert refused.problems
        assert all(p.path and p.message for p in refused.problems)
