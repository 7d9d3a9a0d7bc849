"""The stages that train one model, and the rehearsal."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from worker.contract.parts import Lora, Optimizer, Pattern, Scratch
from worker.contract.problem import Problem
from worker.contract.traits import Traits
from worker.contract.values import PositiveInt, Reference, Strict


class Data(Strict):
    """The rows a stage reads, and what happens to a row that is longer than `max_length`."""

    train: Reference
    truncate: bool = Field(default=False, description="cut rows that are too long; otherwise they are refused")


def _data_from_reference(value: Any) -> Any:
    return {"train": value} if isinstance(value, str) else value


class TrainStage(Strict):
    """What every training stage has."""

    traits: ClassVar[Traits]
    begun: ClassVar[dict[str, Any]] = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "data": "./rows.jsonl"}
    """What a spec that a person begins with says of the fields that have no default."""
    model: Reference | Scratch = Field(
        description="a hub's name, a folder, a GGUF file, `models/NAME[@version]`, or a configuration from scratch"
    )
    data: Annotated[Data, BeforeValidator(_data_from_reference)] = Field(
        description="a reference to the rows, or `{train, truncate}`"
    )
    steps: PositiveInt | None = Field(default=None, description="optimizer updates; give this or `epochs`")
    epochs: PositiveInt | None = Field(
        default=None, description="passes over the data, at most 10,000; 1 if `steps` is absent too"
    )
    batch: PositiveInt = Field(default=8, description="rows (packed sequences, with packing) an update, over all ranks")
    micro_batch: PositiveInt | None = Field(
        default=None,
        description="rows a rank at a time; absent: the most that divides its share, up to 8, and where packed "
        "on a processor up to 1,024 tokens",
    )
    max_length: Annotated[int, Field(ge=2, le=2**20)] = Field(default=1024, description="tokens a row")
    packing: bool = Field(default=False, description="several samples in one row, blind to each other")
    optimizer: Optimizer = Optimizer()
    lora: Lora | None = None
    freeze: list[Pattern] = Field(
        default=[], description="weights that stay as they are, by names such as `model.embed_tokens.*`"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="less memory for activations, about a third slower, the same result"
    )
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(
        default=17, description="of new weights, the order of rows, dropout and what is held out"
    )
    tensorboard: bool = Field(default=False, description="also write TensorBoard files, into the attempt's folder")

    def mixes(self) -> list[Problem]:
        """What is wrong between fields of this stage alone that are each right; their paths begin with `stage.`."""
        return []


class PretrainStage(TrainStage):
    """Next-token prediction on raw text, packed to full sequences. Rows: `{text}`."""

    traits = Traits(rows=("text",), lr=3e-4)
    type: Literal["pretrain"]
    packing: Literal[True] = True


class SftStage(TrainStage):
    """Supervised fine-tuning on dialogues; the loss is on the assistant's turns only. Rows: `{messages}`."""

    traits = Traits(rows=("messages",), lr=2e-5)
    type: Literal["sft"]


class RewardStage(TrainStage):
    """A reward model: one score for an answer, learnt from which of several is better (Bradley and Terry, 1952).

    Rows: `{prompt, chosen, rejected}`, or `{prompt, answers: [{text, score}]}` with any number of answers; `batch` and
    `micro_batch` count rows. All pairs of a row together weigh as much as one row (Ouyang et al., 2022).
    """

    traits = Traits(
        rows=("chosen", "answers"), lr=1e-5, head="score", begins_with="any_model", gives="scorer",
        gives_adapter="scoring_adapter", sequences=2, worded=False,
    )  # fmt: skip
    type: Literal["reward"]
    packing: Literal[False] = False
    center: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.01,
        description="weight of a pair's summed scores, squared: they stay near 0 (Eisenstein et al., 2023)",
    )


class PlannedFault(Strict):
    """A failure to rehearse: at which step of which attempt, and what kind."""

    step: PositiveInt
    kind: Literal["error", "killed", "stall", "diverged", "out_of_memory", "bad_data"]
    attempt: PositiveInt | None = Field(default=None, description="absent: in every attempt")


class RehearseStage(Strict):
    """A job's life without a model: it waits through its steps, and reports, saves, stops and resumes as all stages do.

    For trying out an installation, alerts and quotas in seconds; it needs no torch.
    """

    begun: ClassVar[dict[str, Any]] = {}
    type: Literal["rehearse"]
    model: Reference | None = Field(default=None, description="what another rehearsal handed over, to go on from")
    output: bool = Field(default=False, description="hand over a model, of a single number, as other stages do")
    steps: PositiveInt = 10
    seconds_per_step: Annotated[float, Field(ge=0, le=3600)] = 0.1
    checkpoint_bytes: Annotated[int, Field(ge=0, le=2**30)] = 1024
    samples: Annotated[int, Field(ge=0, le=1000)] = Field(default=0, description="made-up answers a step")
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 17
    fault: PlannedFault | None = None
