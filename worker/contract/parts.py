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


Pattern = Annotated[str, Field(min_length=1, max_length=256)]
"""A name of weights with `*`, `?` and `[...]`, as in a shell."""


class Group(Strict):
    """Weights that are updated otherwise than the rest. Of two groups that both match, the later one counts."""

    match: Annotated[list[Pattern], Field(min_length=1)] = Field(
        description="names of weights, such as `*.bias` or `model.embed_tokens.*`"
    )
    lr: Annotated[float, Field(ge=0, le=1000)] = Field(default=1.0, description="times the learning rate")
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = Field(default=None, description="absent: as the rest")


class Optimizer(Strict):
    """What makes updates of gradients, and its schedule."""

    name: Literal["adamw", "lion", "adafactor"] = Field(
        default="adamw",
        description="`adamw` (Loshchilov and Hutter, 2019); `lion` (Chen et al., 2023): half its memory, and a rate "
        "3 to 10 times lower; `adafactor` (Shazeer and Stern, 2018): next to none, on whole matrices, so without ZeRO",
    )
    lr: Annotated[float, Field(gt=0, le=10)] | None = Field(
        default=None,
        description="the peak; absent: the stage's own, which docs/stages.md tells, and with lion a fifth of it",
    )
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt", "wsd"] = Field(
        default="cosine",
        description="how it goes on after the warm-up; `wsd`: stays, and falls by equal parts in the last `decay`",
    )
    warmup: Annotated[float, Field(ge=0)] = Field(
        default=0.03, description="below 1: a share of the steps; from 1 on: a count of steps"
    )
    decay: Annotated[float, Field(gt=0, le=1)] = Field(default=0.2, description="of `wsd`: a share of the steps")
    floor: Annotated[float, Field(ge=0, le=1)] = Field(default=0.0, description="the share of the peak it falls to")
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.999, description="lion's authors write 0.99")
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    clip: Annotated[float, Field(ge=0)] = Field(default=1.0, description="largest gradient norm; 0: no clipping")
    groups: list[Group] = Field(default=[], description="weights with a rate or a decay of their own")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="each layer's rate is this times that of the layer above it; what reads the last one has the whole",
    )

    @property
    def moments(self) -> int:
        """Numbers that it keeps of each weight, as far as they grow with it."""
        return {"adamw": 2, "lion": 1, "adafactor": 0}[self.name]


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
