"""The stage that teaches a small model what a large one would say."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from worker.contract.parts import DeepSpeed
from worker.contract.problem import Problem
from worker.contract.stages import TrainStage
from worker.contract.traits import Traits
from worker.contract.values import PositiveInt, Reference, Strict


class Teacher(Strict):
    """The model that is learnt from. It is only asked: no gradients, no optimizer."""

    model: Reference
    deepspeed: DeepSpeed | None = Field(default=None, description="absent: the job's; zero 3 shards it")


def _from_reference(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


class Own(Strict):
    """How the student's own answers are sampled, which it is then taught on (Agarwal et al., 2024)."""

    share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="of the updates: on answers that the student samples, in place of those of the rows"
    )
    max_new_tokens: PositiveInt = 128
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    slots: Annotated[int, Field(ge=1, le=1024)] = Field(default=16, description="answers a rank samples side by side")


class DistillStage(TrainStage):
    """Distillation: a student learns the odds that a teacher gives each token (Hinton et al., 2015).

    The loss is a divergence between the two models' next-token distributions, summed over the whole vocabulary, at the
    tokens of the assistant's turns. Both must have the same tokenizer.
    """

    traits = Traits(rows=("messages",), lr=2e-5, models=("teacher.model",))
    begun: ClassVar[dict[str, Any]] = {**TrainStage.begun, "teacher": "models/large"}
    type: Literal["distill"]
    teacher: Annotated[Teacher, BeforeValidator(_from_reference)] = Field(
        description="a reference to a model with the same tokenizer, or `{model, deepspeed}`"
    )
    divergence: Literal["forward", "reverse", "jsd"] = Field(
        default="forward",
        description="`forward`: KL(teacher || student), which covers all that the teacher might say; `reverse`: "
        "KL(student || teacher), which says only what it would; `jsd`: between the two",
    )
    beta: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="of `jsd`: the teacher's share of the mixture that both are compared with"
    )
    temperature: Annotated[float, Field(gt=0, le=100)] = Field(
        default=1.0, description="of both distributions in the loss; above 1 the unlikely tokens count for more"
    )
    text: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=0.0, description="weight of the usual loss on the rows' own words, beside the divergence"
    )
    own: Own = Own()

    def mixes(self) -> list[Problem]:
        """Own answers have no words of the rows, and are as long as there is room for."""
        found = []
        if self.own.share and self.packing:
            found.append(Problem("stage.packing", "packs the rows' own answers; with own.share above 0 leave it out"))
        if self.own.share and self.own.max_new_tokens >= self.max_length:
            said = f"leaves no room for a prompt within stage.max_length, {self.max_length}; write less"
            found.append(Problem("stage.own.max_new_tokens", said))
        return found
