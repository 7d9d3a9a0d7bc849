"""Memory by arithmetic: counts that are known, parts that add up, and answers that do not contradict each other."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.contract.architectures import FAMILIES, UnknownArchitecture, architecture_of
from worker.contract.check import parse_spec
from worker.contract.estimate import CannotEstimate, Estimate, estimate

pytestmark = pytest.mark.quick

SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}  # fmt: skip
LLAMA_7B = {"model_type": "llama"}


def sft(stage: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"stage": {"type": "sft", "model": "org/model", "data": "files/x", **(stage or {})}, **more}


def of(spec: dict[str, Any], config: dict[str, Any] = SMOLLM2, memory: str | None = None) -> Estimate:
    """The estimate of a spec whose models are all of one configuration."""
    stage = spec["stage"]
    paths = ["stage.model", "stage.against", "stage.reference.model"]
    paths += [f"stage.{role}.model" for role in ("actor", "critic")]
    paths += [f"stage.reward.terms.{n}.model" for n in range(len(stage.get("reward", {}).get("terms", [])))]
    return estimate(parse_spec(spec), dict.fromkeys(paths, config), memory)


def ppo(**stage: Any) -> dict[str, Any]:
    made = {
        "type": "ppo", "actor": {"model": "org/sft"}, "critic": {"model": "org/rm"},
        "reward": {"terms": [{"model": "org/rm"}]}, "data": "files/x", "max_length": 256,
        "rollout": {"prompts": 16, "max_new_tokens": 64},
    }  # fmt: skip
    return {"stage": {**made, **stage}}


@pytest.mark.parametrize(
    ("config", "count"),
    [
        # As their publishers tell them.
        (LLAMA_7B, 6_738_415_616),
        ({"model_type": "gpt2"}, 124_439_808),
        ({"model_type": "mistral"}, 7_241_732_096),
        ({"model_type": "gpt_neox"}, 20_554_567_680),
        (SMOLLM2, 134_515_008),
    ],
    ids=["llama-7b", "gpt2", "mistral-7b", "neox-20b", "smollm2"],
)
def test_the_parameters_of_known_models_are_counted_to_the_last_one(config: dict[str, Any], count: int) -> None:
    assert architecture_of(config).parameters() == count


def test_a_family_that_is_not_known_is_said_with_those_that_are() -> None:
    with pytest.raises(UnknownArchitecture, match="rwkv is not counted yet; llama, "):
        architecture_of({"model_type": "rwkv"})
    with pytest.raises(CannotEstimate) as refused:
        of(sft(), {"model_type": "rwkv"})
    assert [problem.path for problem in refused.value.problems] == ["stage.model"]


@pytest.mark.parametrize("config", [{"hidden_size": 0}, {"hidden_size": "wide"}, {"num_attention_heads": 0}])
def test_sizes_that_make_no_model_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UnknownArchitecture, match="sizes are not those of a model"):
        architecture_of({"model_type": "llama", **config})


def test_full_training_in_fp32_stands_at_sixteen_bytes_a_parameter() -> None:
    role = of(sft(deepspeed={"precision": "fp32"})).roles[0]
    count = 134_515_008
    assert (role.parameters, role.trained) == (count, count)
    assert (role.weights, role.gradients, role.optimizer) == (4 * count, 4 * count, 8 * count)


def test_lora_trains_two_matrices_a_layer_and_its_optimizer_is_as_small() -> None:
    role = of(sft({"lora": {"rank": 8}})).roles[0]
    # q 576+576, k and v 576+192, o 576+576, gate and up 576+1536, down 1536+576: by 8, in 30 layers.
    assert role.trained == 30 * 8 * (1152 + 2 * 768 + 1152 + 2 * 2112 + 2112)
    assert role.optimizer == 12 * role.trained
    assert role.parameters == 134_515_008 + role.trained


def test_each_stage_of_zero_shards_one_thing_more() -> None:
    def roles(zero: int) -> Any:
        shared = {"resources": {"per_node": 4}, "deepspeed": {"zero": zero, "precision": "bf16"}}
        return of(sft({"batch": 16, "micro_batch": 4}, **shared), LLAMA_7B).roles[0]

    whole = 6_738_415_616
    assert roles(0) == roles(1)  # bf16 without ZeRO runs as stage 1
    assert roles(1).optimizer == roles(2).optimizer == roles(3).optimizer == 12 * whole // 4
    assert roles(1).gradients == 4 * whole
    assert roles(2).gradients == roles(3).gradients == 4 * whole // 4
    assert roles(2).weights == 2 * whole
    assert roles(3).weights == pytest.approx(2 * whole / 4, rel=0.01)


def test_what_is_offloaded_leaves_the_accelerator_and_is_on_the_host() -> None:
    gpu = {"resources": {"accelerator": "nvidia.com/gpu"}}
    here = of(sft(deepspeed={"zero": 2}, **gpu), LLAMA_7B)
    there = of(sft(deepspeed={"zero": 2, "offload": "cpu"}, **gpu), LLAMA_7B)
    # But for a buffer of the largest weight, through which gradients leave.
    assert here.peak - there.peak == pytest.approx(12 * 6_738_415_616, rel=0.01)
    assert there.roles[0].on_host >= 12 * 6_738_415_616
    assert there.host.tensors > here.host.tensors


def test_the_phases_parts_add_up_and_the_peak_is_the_largest() -> None:
    for spec in (sft(), sft({"type": "reward"}), ppo()):
        found = of(spec)
        for phase in found.phases:
            parts = phase.model_dump(exclude={"phase", "total"})
            assert sum(parts.values()) == phase.total
        assert found.peak == max(phase.total for phase in found.phases)


def test_a_shared_reference_takes_no_memory() -> None:
    lora: dict[str, Any] = {"lora": {}}
    whole = of(ppo())
    assert [role.role for role in whole.roles] == ["actor", "critic", "reference", "reward.0"]
    adapters = of(ppo(actor={"model": "org/sft", **lora}, critic={"model": "org/rm", **lora}))
    assert [role.role for role in adapters.roles] == ["actor", "critic", "reward.0"]
    assert adapters.peak <= 0.6 * whole.peak


def test_a_shared_base_is_there_once_and_adapters_on_it_are_small() -> None:
    lora: dict[str, Any] = {"lora": {"rank": 16}}
    # As many bytes of adapters on either side; little beside the weights.
    small = {"micro_batch": 1, "max_length": 64, "rollout": {"prompts": 16, "slots": 1, "max_new_tokens": 16}}
    apart = ppo(
        actor={"model": "org/sft", **lora}, critic={"model": "org/sft", **lora}, reference={"model": "org/sft"}, **small
    )
    shared = ppo(
        actor={"model": "org/sft", **lora}, critic={"model": "org/sft", **lora}, share_base=True,
        reward={"terms": [{"model": "models/adapter"}]}, **small,
    )  # fmt: skip
    adapter = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    configs = {"stage.actor.model": SMOLLM2, "stage.critic.model": SMOLLM2, "stage.reward.terms.0.model": adapter}
    found = estimate(parse_spec(shared), configs)
    actor, critic, reward = found.roles
    # What r of q_proj takes: 30 layers, 576 numbers in and out; and the head of the critic and of the reward model.
    assert reward.parameters == 30 * 8 * (576 + 576) + 576
    assert critic.parameters == critic.trained == actor.trained + 576
    assert found.peak <= 0.65 * of(apart).peak
    for wrong in ({**adapter, "use_dora": True}, {**adapter, "peft_type": "IA3"}, {**adapter, "r": 0}):
        with pytest.raises(CannotEstimate) as caught:
            estimate(parse_spec(shared), {**configs, "stage.reward.terms.0.model": wrong})
        assert [problem.path for problem in caught.value.problems] == ["stage.reward.terms.0.model"]


def test_a_cache_of_keys_and_values_has_its_place_in_the_rollout_alone() -> None:
    found = {phase.phase: phase for phase in of(ppo(rollout={"prompts": 16, "slots": 16, "max_new_tokens": 64})).phases}
    # 16 slots x 256 tokens x 30 layers x (3 + 3) heads of 64, in bf16, and once more of one layer, which is copied.
    cache = 16 * 256 * 30 * 2 * 192 * 2
    assert found["rollout"].kv_cache == cache + cache // 30
    assert all(phase.kv_cache == 0 for name, phase in found.items() if name != "rollout")


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_more_rows_longer_rows_and_no_checkpointing_never_take_less(stage: str) -> None:
    def peak(**fields: Any) -> int:
        if stage == "ppo":
            checkpointing = fields.pop("gradient_checkpointing", False)
            roles = {"actor": "org/sft", "critic": "org/rm"}
            return of(
                ppo(**{r: {"model": m, "gradient_checkpointing": checkpointing} for r, m in roles.items()}, **fields)
            ).peak
        return of(sft({"type": stage, **fields})).peak

    assert peak(micro_batch=4) > peak(micro_batch=2) > peak(micro_batch=1)
    assert peak(max_length=512) > peak(max_length=128)
    assert peak() > peak(gradient_checkpointing=True)


def test_what_fits_is_said_and_needs_no_other_spec() -> None:
    found = of(sft(), memory="64Gi")
    assert (found.fits, found.nearest, found.host_limit) == (True, None, 64 * 2**30)
    assert of(sft()).fits is None
    assert of(sft(resources={"memory": "1Gi"})).fits is False


def test_the_nearest_spec_changes_as_little_as_will_do() -> None:
    peak = of(sft()).host.node
    nearest = of(sft(), memory=f"{peak // 2**20 - 300}Mi").nearest
    assert nearest is not None
    assert set(nearest.changes) == {"stage.micro_batch"}
    assert nearest.node <= (peak // 2**20 - 300) * 2**20


def test_what_no_change_helps_has_no_nearest_spec() -> None:
    assert of(sft(), LLAMA_7B, memory="1Gi").nearest is None


@settings(deadline=None)
@given(
    stage=st.sampled_from(["sft", "reward", "ppo"]),
    memory=st.sampled_from(["2Gi", "4Gi", "8Gi", "24Gi", "80Gi"]),
    per_node=st.sampled_from([1, 2, 8]),
    accelerator=st.sampled_from(["none", "nvidia.com/gpu"]),
    precision=st.sampled_from(["bf16", "fp32"]),
    config=st.sampled_from([SMOLLM2, LLAMA_7B, {"model_type": "gpt2"}]),
)
def test_the_nearest_spec_is_one_that_is_right_and_does_fit(
    stage: str, memory: str, per_node: int, accelerator: str, precision: str, config: dict[str, Any]
) -> None:
    made = ppo() if stage == "ppo" else sft({"type": stage, "batch": 16})
    made["stage"]["max_length"] = 256
    made |= {"resources": {"per_node": per_node, "accelerator": accelerator}, "deepspeed": {"precision": precision}}
    found = of(made, config, memory)
    assert found.fits is not None
    if found.nearest is None:
        return
    for path, value in found.nearest.changes.items():
        at = made
        *parents, last = path.split(".")
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    changed = of(made, config, memory)
    assert changed.fits
    assert (changed.peak, changed.host.node) == (found.nearest.peak, found.nearest.node)


def test_every_family_is_estimated_and_a_rehearsal_is_not() -> None:
    for family in FAMILIES:
        assert of(sft({"lora": {}}), {"model_type": family}).peak > 0
    with pytest.raises(CannotEstimate, match="a rehearsal has no model"):
        of({"stage": {"type": "rehearse"}})


def test_a_model_from_scratch_takes_its_tokenizers_vocabulary() -> None:
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    scratch = {"type": "pretrain", "model": {"config": config}, "data": "files/x"}
    role = estimate(parse_spec({"stage": scratch}), {}).roles[0]
    assert role.parameters == architecture_of({**config, "vocab_size": 259}).parameters()
