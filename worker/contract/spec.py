"""The job spec: what a person POSTs. Defaults are good; everything wrong is said at once."""

from typing import Annotated, get_args

from pydantic import BaseModel, Field

from worker.contract.accelerators import Accelerator
from worker.contract.classify import ClassifyStage
from worker.contract.distill import DistillStage
from worker.contract.evaluation import EvaluateStage
from worker.contract.group import GrpoStage, RlooStage
from worker.contract.names import LabelledName
from worker.contract.parts import DeepSpeed, Lora, Optimizer
from worker.contract.pod import Pod
from worker.contract.ppo import PpoStage, RlStage
from worker.contract.preference import DpoStage, KtoStage, OrpoStage
from worker.contract.stages import PretrainStage, RehearseStage, RewardStage, SftStage, TrainStage
from worker.contract.traits import Traits
from worker.contract.values import Duration, Name, PositiveInt, Quantity, Reference, Strict

# The registry: a stage is one entry here, its class in the contract, and the module `worker.stages.<type>`.
Stage = Annotated[
    PretrainStage
    | SftStage
    | RewardStage
    | ClassifyStage
    | DpoStage
    | OrpoStage
    | KtoStage
    | DistillStage
    | PpoStage
    | GrpoStage
    | RlooStage
    | EvaluateStage
    | RehearseStage,
    Field(discriminator="type"),
]


class Resources(Strict):
    """What one attempt gets. Ranks = nodes x per_node."""

    nodes: Annotated[int, Field(ge=1, le=1024)] = 1
    per_node: Annotated[int, Field(ge=1, le=64)] = Field(default=1, description="ranks a node")
    accelerator: Accelerator = "none"
    cpu: Quantity | None = Field(default=None, description="cores a node; absent: all that the machine has")
    memory: Quantity | None = Field(
        default=None, description="a node; asked for and enforced on a cluster, not enforced on one machine"
    )
    pod: Pod | None = Field(default=None, description="more of the pods, on Kubernetes")


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
    kueue: LabelledName | None = Field(
        default=None, description="a LocalQueue of Kueue, which then decides when the pods start; absent: none"
    )
    kueue_priority_class: LabelledName | None = Field(
        default=None, description="a WorkloadPriorityClass of Kueue: who waits, and who gives way, in its queues"
    )


STAGES: dict[str, type[BaseModel]] = {
    get_args(stage.model_fields["type"].annotation)[0]: stage for stage in get_args(get_args(Stage)[0])
}
"""The stages by their types."""
_PACKED_TOKENS = 1024  # of a micro-batch of full rows on a processor

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
        match self.stage:
            case RehearseStage():
                return 1
            case EvaluateStage():
                return self.stage.micro_batch
        if self.stage.micro_batch is not None:
            return self.stage.micro_batch
        share = max(1, self._rows_an_update() // self.ranks)
        most = 8
        if isinstance(self.stage, TrainStage) and self.stage.packing and self.resources.accelerator == "none":
            # On a processor a token costs more where its neighbours do not fit into the cache.
            most = max(1, min(most, _PACKED_TOKENS // self.stage.max_length))
        return max(n for n in range(1, min(share, most) + 1) if share % n == 0)

    @property
    def accumulation(self) -> int:
        """Micro-batches a rank sums up before an update."""
        if isinstance(self.stage, RehearseStage | EvaluateStage):
            return 1
        return max(1, self._rows_an_update() // (self.micro_batch * self.ranks))

    def _rows_an_update(self) -> int:
        """Rows that one update of the weights sees, over all ranks."""
        if isinstance(self.stage, RlStage):
            return max(1, self.stage.rows // self.stage.passes.minibatches)
        assert isinstance(self.stage, TrainStage)
        return self.stage.batch

    @property
    def lr(self) -> float:
        """The peak learning rate of a stage that trains one model: the one given, or the method's default."""
        if not isinstance(self.stage, TrainStage):
            return 0.0
        return learning_rate_of(self.stage.traits, self.stage.optimizer, self.stage.lora)


def learning_rate_of(traits: Traits, optimizer: Optimizer, lora: Lora | None) -> float:
    """The peak learning rate: the one given, or the default of a stage's method."""
    if optimizer.lr is not None:
        return optimizer.lr
    rate = traits.lr if lora is None else traits.lr_of_lora
    # Its updates have the length of their signs (Chen et al., 2023: 3 to 10 times lower).
    return rate / 5 if optimizer.name == "lion" else rate
