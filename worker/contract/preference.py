"""The stages that learn from preferences without a reward model: dpo, orpo and kto."""

from typing import Annotated, Literal

from pydantic import Field

from worker.contract.problem import Problem
from worker.contract.stages import TrainStage
from worker.contract.traits import Traits

Beta = Annotated[float, Field(gt=0, le=1000)]
Weight = Annotated[float, Field(gt=0, le=1000)]


class DpoStage(TrainStage):
    """Direct preference optimization: the better of two answers becomes likelier, measured from the model as it began
    (Rafailov et al., 2023).

    Rows: those of reward; all pairs of a row together weigh as much as one row, and a pair's `margin` is asked of its
    rewards. What the model as it began says of all answers is computed once, before the first step, and kept in the
    checkpoints. Dropout is off.
    """

    traits = Traits(rows=("chosen", "answers"), lr=1e-6, lr_of_lora=1e-5, sequences=2)
    type: Literal["dpo"]
    packing: Literal[False] = False
    loss: Literal["sigmoid", "ipo", "hinge"] = Field(
        default="sigmoid",
        description="`ipo`: Azar et al., 2023; `hinge`: SLiC, Zhao et al., 2023",
    )
    beta: Beta = Field(default=0.1, description="reward of a nat; a higher one keeps the model nearer to its beginning")
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.0, description="how often people are taken to be wrong; for `loss: sigmoid`"
    )
    reference_free: bool = Field(
        default=False, description="measured from nothing: an answer's reward is its log-probability"
    )
    length_normalised: bool | None = Field(
        default=None,
        description="rewards are a mean over an answer's tokens, not their sum; absent: with `loss: ipo` alone",
    )

    @property
    def by_token(self) -> bool:
        """Whether rewards are means over tokens."""
        return self.loss == "ipo" if self.length_normalised is None else self.length_normalised

    def mixes(self) -> list[Problem]:
        """Smoothing is of the sigmoid loss."""
        if self.label_smoothing and self.loss != "sigmoid":
            said = f"is for `loss: sigmoid`, and `{self.loss}` has no odds to smooth; leave it out"
            return [Problem("stage.label_smoothing", said)]
        return []


class OrpoStage(TrainStage):
    """Odds ratio preference optimization: fine-tuning on the better answers, and at once away from the worse ones
    (Hong et al., 2024). No reference.

    Rows: those of reward, without their margins; all pairs of a row together weigh as much as one row. The loss of a
    row is the mean of -log p over its better answer's tokens, and `beta` times the loss of the odds. Dropout is off.
    """

    traits = Traits(rows=("chosen", "answers"), lr=8e-6, lr_of_lora=8e-5, sequences=2)
    type: Literal["orpo"]
    packing: Literal[False] = False
    beta: Beta = Field(default=0.1, description="weight of the odds (the paper's lambda)")
    prompts: bool = Field(default=False, description="also learn to write the prompts of better answers")


class KtoStage(TrainStage):
    """Kahneman-Tversky optimization: from single answers, each one to give or not to give (Ethayarajh et al., 2024).

    Rows: `{prompt, completion, label}`. How far the model has moved from its beginning is told from mismatched pairs, a
    row's prompt with the answer to another one, over all rows of an update. What the model as it began says of all
    answers is computed once, before the first step, and kept in the checkpoints. Dropout is off.
    """

    traits = Traits(rows=("completion",), lr=1e-6, lr_of_lora=1e-5)
    type: Literal["kto"]
    packing: Literal[False] = False
    beta: Beta = Field(default=0.1, description="reward of a nat; a higher one keeps the model nearer to its beginning")
    desirable_weight: Weight = Field(default=1.0, description="of answers to give; fit it to how many there are")
    undesirable_weight: Weight = Field(default=1.0, description="of answers not to give")

    def mixes(self) -> list[Problem]:
        """An update needs mismatched pairs."""
        if self.batch < 2:
            said = "kto tells how far the model has moved from the rows of an update; write at least 2"
            return [Problem("stage.batch", said)]
        return []
