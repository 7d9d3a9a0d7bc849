"""What several stages are made of: models from scratch, optimizers, adapters, and how an engine shards."""

from typing import Annotated, Any, Literal

from pydantic import Field

from worker.contract.values import PositiveInt, Reference, Strict


class Scratch(Strict):
    """A model made from a configuration, with random weights drawn from the stage's seed."""

    config: dict[str, Any] = Field(
        description="a transformers configuration: `model_type` and its sizes; the vocabulary comes from the tokenizer",
        examples=[{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}],
    )
    tokenizer: Reference = Field(
        default="bytes",
        description="`bytes` (one token a byte, with a ChatML template, nothing to download) or a model's reference",
    )


class Optimizer(Strict):
    """AdamW and its schedule."""

    lr: Annotated[float, Field(gt=0, le=10)] | None = Field(
        default=None,
        description="the peak; absent: the stage's own, which docs/stages.md tells",
    )
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Annotated[float, Field(ge=0)] = Field(
        default=0.03, description="below 1: a share of the steps; from 1 on: a count of steps"
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    clip: Annotated[float, Field(ge=0)] = Field(default=1.0, description="largest gradient norm; 0: no clipping")


class Lora(Strict):
    """Low-rank adapters (Hu et al., 2021), by peft."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[float, Field(gt=0)] = Field(default=32.0, description="adapters are scaled by alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="of the adapters' inputs")
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = Field(
        default="all-linear", description="layers by the ends of their names; `all-linear`: all but the output layer"
    )


class ZeroOptimization(Strict):
    """DeepSpeed's `zero_optimization`, by its names: sizes in elements. Absent ones are DeepSpeed's defaults."""

    reduce_bucket_size: PositiveInt | None = None
    allgather_bucket_size: PositiveInt | None = None
    allgather_partitions: bool | None = None
    reduce_scatter: bool | None = None
    overlap_comm: bool | None = None
    contiguous_gradients: bool | None = None
    round_robin_gradients: bool | None = None
    sub_group_size: PositiveInt | None = None
    stage3_max_live_parameters: PositiveInt | None = None
    stage3_max_reuse_distance: PositiveInt | None = None
    stage3_prefetch_bucket_size: PositiveInt | None = None
    stage3_param_persistence_threshold: PositiveInt | None = None


class DeepSpeedConfig(Strict):
    """What DeepSpeed may be told beyond the spec, by its own names. The rest would change what resume depends on."""

    zero_optimization: ZeroOptimization = ZeroOptimization()
    communication_data_type: Literal["fp32", "bf16", "fp16"] | None = None
    prescale_gradients: bool | None = None
    wall_clock_breakdown: bool | None = None


class DeepSpeed(Strict):
    """How the engine shards and computes. `config` adds to DeepSpeed's own configuration, checked."""

    zero: Literal[0, 1, 2, 3] = Field(
        default=0, description="what is shared out over ranks: 1 the optimizer's state, 2 gradients too, 3 weights too"
    )
    offload: Literal["none", "cpu"] = Field(default="none", description="`cpu`: the optimizer's state in host memory")
    precision: Literal["fp32", "bf16"] = Field(
        default="bf16", description="of weights and activations; sums and the optimizer's state are fp32 either way"
    )
    config: DeepSpeedConfig = Field(
        default=DeepSpeedConfig(), description="more of DeepSpeed's configuration, merged in"
    )
