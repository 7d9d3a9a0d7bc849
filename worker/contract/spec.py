"""The job spec: what a person POSTs. Defaults are good; everything wrong is said at once."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from worker.contract.values import Duration, Name, PositiveInt, Quantity, Reference, Strict


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


class Data(Strict):
    """The rows a stage reads, and what happens to a row that is longer than `max_length`."""

    train: Reference
    truncate: bool = Field(default=False, description="cut rows that are too long; otherwise they are refused")


class Optimizer(Strict):
    """AdamW and its schedule."""

    lr: Annotated[float, Field(gt=0, le=10)] | None = Field(
        default=None, description="absent: 2e-4 with LoRA, 2e-5 for full sft, 3e-4 for full pretrain"
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


def _data_from_reference(value: Any) -> Any:
    return {"train": value} if isinstance(value, str) else value


class TrainStage(Strict):
    """What every training stage has."""

    model: Reference | Scratch
    data: Annotated[Data, BeforeValidator(_data_from_reference)] = Field(
        description="a reference to the rows, or `{train, truncate}`"
    )
    steps: PositiveInt | None = Field(default=None, description="optimizer updates; give this or `epochs`")
    epochs: PositiveInt | None = Field(default=None, description="passes over the data; 1 if `steps` is absent too")
    batch: PositiveInt = Field(default=8, description="rows (packed sequences, with packing) an update, over all ranks")
    micro_batch: PositiveInt | None = Field(
        default=None, description="rows a rank at a time; absent: the most that divides its share, 8 at most"
    )
    max_length: Annotated[int, Field(ge=2, le=2**20)] = Field(default=1024, description="tokens a row")
    packing: bool = Field(default=False, description="several samples in one row, blind to each other")
    optimizer: Optimizer = Optimizer()
    lora: Lora | None = None
    gradient_checkpointing: bool = Field(
        default=False, description="less memory for activations, about a third slower, the same result"
    )
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(
        default=17, description="of new weights, the order of rows, dropout and what is held out"
    )
    tensorboard: bool = Field(default=False, description="also write TensorBoard files, into the attempt's folder")


class PretrainStage(TrainStage):
    """Next-token prediction on raw text, packed to full sequences. Rows: `{text}`."""

    type: Literal["pretrain"]
    packing: Literal[True] = True


class SftStage(TrainStage):
    """Supervised fine-tuning on dialogues; the loss is on the assistant's turns only. Rows: `{messages}`."""

    type: Literal["sft"]


class PlannedFault(Strict):
    """A failure to rehearse: at which step of which attempt, and what kind."""

    step: PositiveInt
    kind: Literal["error", "killed", "stall", "diverged", "out_of_memory", "bad_data"]
    attempt: PositiveInt | None = Field(default=None, description="absent: in every attempt")


class RehearseStage(Strict):
    """A job's life without a model: it waits through its steps, and reports, saves, stops and resumes as all stages do.

    For trying out an installation, alerts and quotas in seconds; it needs no torch.
    """

    type: Literal["rehearse"]
    steps: PositiveInt = 10
    seconds_per_step: Annotated[float, Field(ge=0, le=3600)] = 0.1
    checkpoint_bytes: Annotated[int, Field(ge=0, le=2**30)] = 1024
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 17
    fault: PlannedFault | None = None


Stage = Annotated[PretrainStage | SftStage | RehearseStage, Field(discriminator="type")]


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


class Resources(Strict):
    """What one attempt gets. Ranks = nodes x per_node."""

    nodes: Annotated[int, Field(ge=1, le=1024)] = 1
    per_node: Annotated[int, Field(ge=1, le=64)] = Field(default=1, description="ranks a node")
    accelerator: Literal["none", "nvidia.com/gpu"] = Field(default="none", description="`none`: on the processor")
    cpu: Quantity | None = Field(default=None, description="cores a node; absent: all that the machine has")
    memory: Quantity | None = Field(
        default=None, description="a node; asked for on a cluster, not enforced on one machine"
    )


class Retry(Strict):
    max_attempts: Annotated[int, Field(ge=1, le=100)] = Field(
        default=3, description="attempts in a row that made no newer checkpoint"
    )


class Checkpointing(Strict):
    every_steps: PositiveInt = Field(default=50, description="steps between two checkpoints")
    keep: Annotated[int, Field(ge=1, le=1000)] = Field(default=2, description="the newest ones that stay")
    grace: Duration = Field(default=600.0, description="time to save in, when stopped")


class Evaluate(Strict):
    """Loss and perplexity on rows that are not trained on. Give `data` or `held_out`."""

    data: Reference | None = None
    held_out: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="the share of the training rows that is kept back, chosen by the seed"
    )
    every_steps: PositiveInt | None = Field(default=None, description="absent: before the first step and at the end")


class Limits(Strict):
    wall_clock: Duration | None = Field(default=None, description="running time, over all attempts")
    start: Duration = Field(default=1800.0, description="from the start of an attempt to its first report")
    stall: Duration = Field(default=1800.0, description="without a step, a load or a save, though it still reports")


class Queue(Strict):
    priority: Annotated[int, Field(ge=-1000, le=1000)] = Field(default=0, description="higher starts first")


Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class JobSpec(Strict):
    """One run of one stage. `{"stage": {"type", "model", "data"}}` is a whole spec."""

    name: Name | None = Field(default=None, description="absent: the stage's type; the output model has this name")
    metadata: Metadata = {}
    stage: Stage
    deepspeed: DeepSpeed = DeepSpeed()
    resources: Resources = Resources()
    retry: Retry = Retry()
    checkpoint: Checkpointing = Checkpointing()
    evaluate: Evaluate | None = None
    limits: Limits = Limits()
    queue: Queue = Queue()

    @property
    def title(self) -> str:
        """The job's name: the one given, or the stage's type."""
        return self.name or self.stage.type

    @property
    def ranks(self) -> int:
        """Processes that train, over all nodes."""
        return self.resources.nodes * self.resources.per_node

    @property
    def micro_batch(self) -> int:
        """Rows a rank takes at a time."""
        if isinstance(self.stage, RehearseStage):
            return 1
        if self.stage.micro_batch is not None:
            return self.stage.micro_batch
        share = max(1, self.stage.batch // self.ranks)
        return max(n for n in range(1, min(share, 8) + 1) if share % n == 0)

    @property
    def accumulation(self) -> int:
        """Micro-batches a rank sums up before an update."""
        if isinstance(self.stage, RehearseStage):
            return 1
        return max(1, self.stage.batch // (self.micro_batch * self.ranks))

    @property
    def lr(self) -> float:
        """The peak learning rate: the one given, or the method's default."""
        if isinstance(self.stage, RehearseStage):
            return 0.0
        if self.stage.optimizer.lr is not None:
            return self.stage.optimizer.lr
        if self.stage.lora is not None:
            return 2e-4
        return {"sft": 2e-5, "pretrain": 3e-4}[self.stage.type]

    def references(self) -> list[tuple[str, str, Literal["model", "data"]]]:
        """All references to resolve: (path in the spec, reference, what it must be)."""
        found: list[tuple[str, str, Literal["model", "data"]]] = []
        if isinstance(self.stage, RehearseStage):
            return found
        if isinstance(self.stage.model, Scratch):
            if self.stage.model.tokenizer != "bytes":
                found.append(("stage.model.tokenizer", self.stage.model.tokenizer, "model"))
        else:
            found.append(("stage.model", self.stage.model, "model"))
        found.append(("stage.data.train", self.stage.data.train, "data"))
        if self.evaluate is not None and self.evaluate.data is not None:
            found.append(("evaluate.data", self.evaluate.data, "data"))
        return found
