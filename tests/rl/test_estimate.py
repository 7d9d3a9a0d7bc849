"""The estimate against what real tensors take under the real stages, and the process's own peak."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.jobs import Job, spec
from tests.engine.pool import Pool
from tests.rl import estimate_cases as cases
from tests.rl import ppo_jobs
from worker.contract.architectures import FAMILIES, architecture_of
from worker.contract.check import parse_spec
from worker.contract.estimate import Estimate, estimate

LLAMA = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 512,
}  # fmt: skip
NEOX = {
    "model_type": "gpt_neox", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
    "num_attention_heads": 4, "tie_word_embeddings": True, "max_position_embeddings": 512,
}  # fmt: skip
DIALOGUES = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 400}]} for _ in range(16)
]
PAIRS = [{"prompt": "a" * 8, "chosen": "b" * 100, "rejected": "c" * 100} for _ in range(16)]
TOLERANCE = 0.15
Made = Callable[..., tuple[Job, Estimate]]


@pytest.fixture
def made(one: Pool, tmp_path: Path) -> Made:
    """A job on a saved model of `config`, all of whose rows are as long as they may be, and its estimate."""

    def make(stage: str = "sft", config: dict[str, Any] = LLAMA, **changes: Any) -> tuple[Job, Estimate]:
        folder = tmp_path / "model"
        one.run(cases.saved_model, str(folder), config)
        base = {"stage__max_length": 128, "stage__batch": 8, "stage__micro_batch": 4, "stage__steps": 3}
        written = spec(stage, **{**base, "stage__model": str(folder), **changes})
        if stage == "sft":
            written["stage"]["data"]["truncate"] = True
        found = estimate(parse_spec(written), {"stage.model": json.loads((folder / "config.json").read_text())})
        return Job(tmp_path / "store", written, PAIRS if stage == "reward" else DIALOGUES), found

    return make


def test_full_training_in_fp32(one: Pool, made: Made) -> None:
    job, found = made()
    assert found.peak == pytest.approx(one.run(cases.peak_of_tensors, job, timeout=300)[0], rel=TOLERANCE)


def test_lora_in_bf16(one: Pool, made: Made) -> None:
    job, found = made(stage__lora={"rank": 16}, deepspeed__precision="bf16")
    assert found.peak == pytest.approx(one.run(cases.peak_of_tensors, job, timeout=300)[0], rel=TOLERANCE)


def test_full_training_in_bf16_under_zero_2_on_two_ranks(two: Pool, made: Made) -> None:
    # Of the bucket no more than this model's gradients, or it would be most of what is compared.
    changes = {"resources__per_node": 2, "deepspeed__precision": "bf16", "deepspeed__zero": 2}
    bucket = {"zero_optimization": {"reduce_bucket_size": 3_000_000}}
    job, found = made(**changes, deepspeed__config=bucket)
    measured = max(two.run(cases.peak_of_tensors, job, timeout=300))
    assert found.peak == pytest.approx(measured, rel=TOLERANCE)


def test_a_reward_model(one: Pool, made: Made) -> None:
    job, found = made("reward")
    assert found.peak == pytest.approx(one.run(cases.peak_of_tensors, job, timeout=300)[0], rel=TOLERANCE)


def test_a_ppo_of_two_adapted_models(one: Pool, tmp_path: Path) -> None:
    folder = tmp_path / "actor"
    one.run(cases.saved_model, str(folder), LLAMA)
    written = ppo_jobs.spec(
        stage__actor={"model": str(folder), "lora": {}},
        stage__critic={"model": str(folder), "lora": {}},
        stage__rollout={"prompts": 8, "slots": 4, "max_new_tokens": 16, "min_new_tokens": 16},
        stage__ppo={"epochs": 1, "minibatches": 1},
        stage__max_length=128,
        stage__micro_batch=4,
        deepspeed__precision="bf16",
    )
    rows = [{"prompt": "a" * 90}] * 24
    models = {"stage.actor.model": folder, "stage.critic.model": folder}
    job = ppo_jobs.Job(tmp_path, written, rows, models=models)
    config = json.loads((folder / "config.json").read_text())
    found = estimate(parse_spec(written), dict.fromkeys(models, config))
    assert found.peak == pytest.approx(one.run(cases.peak_of_tensors, job, timeout=300)[0], rel=TOLERANCE)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_adapters_and_a_shared_reference_take_at_most_six_tenths_of_a_ppo_of_whole_models(
    one: Pool, tmp_path: Path, precision: str
) -> None:
    """Against a full actor and critic, a reference and a reward model, with the same micro-batch."""
    actor = tmp_path / "actor"
    one.run(cases.saved_model, str(actor), LLAMA)
    reward = one.run(cases.saved_reward_model, str(tmp_path / "reward"), str(actor))[0]
    models = {"stage.actor.model": actor, "stage.critic.model": actor, "stage.reward.terms.0.model": Path(reward)}
    peaks = {}
    for name, lora in (("adapters", {"lora": {}}), ("whole", {})):
        written = ppo_jobs.spec(
            stage__actor={"model": str(actor), **lora},
            stage__critic={"model": str(actor), **lora},
            stage__reward={"terms": [{"model": reward}]},
            stage__rollout={"prompts": 8, "slots": 4, "max_new_tokens": 16},
            stage__ppo={"epochs": 1, "minibatches": 1},
            stage__max_length=128,
            stage__micro_batch=4,
            deepspeed__precision=precision,
        )
        job = ppo_jobs.Job(tmp_path / name, written, [{"prompt": "a" * 90}] * 24, models=models)
        peaks[name] = one.run(cases.peak_of_tensors, job, timeout=300)[0]
    print(f"peak tensor bytes in {precision}, adapters / whole models: {peaks['adapters'] / peaks['whole']:.2f}")
    assert peaks["adapters"] <= 0.6 * peaks["whole"]


@pytest.mark.soak
@pytest.mark.parametrize(
    "changes",
    [
        {"deepspeed__precision": "bf16"},
        {"stage__gradient_checkpointing": True},
        {"stage__micro_batch": 8},
        {"stage__batch": 2, "stage__micro_batch": 2, "stage__max_length": 32},
        {"stage__lora": {"targets": ["q_proj", "v_proj"]}},
        {"config": {"model_type": "gpt2", "n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": 512}},
        {"config": NEOX},
    ],
    ids=["bf16", "checkpointing", "one-micro-batch", "few-tokens", "two-targets", "gpt2", "neox"],
)
def test_other_settings_and_families(one: Pool, made: Made, changes: dict[str, Any]) -> None:
    job, found = made(**changes)
    assert found.peak == pytest.approx(one.run(cases.peak_of_tensors, job, timeout=300)[0], rel=TOLERANCE)


def test_the_process_takes_what_the_estimate_says_of_the_host(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a rank's process is started.
    for name, value in (("MMAP_THRESHOLD_", "65536"), ("ARENA_MAX", "1"), ("TRIM_THRESHOLD_", "0")):
        monkeypatch.setenv(f"MALLOC_{name}", value)
    wide = {**LLAMA, "hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12}
    job, found = made(config=wide)
    fresh = Pool(1, tmp_path)
    try:
        (peak,) = fresh.run(cases.peak_of_process, job, timeout=300)
    finally:
        fresh.close()
    assert found.host.rank == pytest.approx(peak, rel=0.25)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_counted_as_transformers_has_them(one: Pool, family: str) -> None:
    small = {
        "vocab_size": 99,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    for config in (
        {"model_type": family},
        {"model_type": family, **small, "tie_word_embeddings": True},
        {"model_type": family, **small, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    ):
        model = architecture_of(config)
        assert one.run(cases.parameters, config)[0] == (model.parameters(), model.parameters("score"))
