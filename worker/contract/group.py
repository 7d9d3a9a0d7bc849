"""The stages that learn from a reward by comparing several answers to one prompt: no critic."""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from worker.contract.ppo import Passes, RlStage
from worker.contract.traits import Traits
from worker.contract.values import Strict


class GroupKl(Strict):
    """The price of leaving the reference, a token."""

    coef: Annotated[float, Field(ge=0, le=100)] = 0.0
    where: Literal["loss", "reward"] = Field(
        default="loss",
        description="`loss`: the k3 estimate, with a gradient of its own; `reward`: taken off the reward",
    )


class Group(Passes):
    """How the answers to one prompt are compared, and learnt from."""

    clip: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.2, description="ratios count from 1 - clip on")
    clip_high: Annotated[float, Field(gt=0, le=100)] | None = Field(
        default=None, description="ratios count up to 1 + clip_high (DAPO writes 0.28); absent: as `clip`"
    )
    ratio: Literal["token", "sequence"] = Field(
        default="token",
        description="`sequence`: one for an answer, the geometric mean of its tokens' (GSPO, Zheng et al., 2025)",
    )
    average: Literal["token", "answer", "length"] = Field(
        default="token",
        description="what the loss is a mean over: all tokens (DAPO, Yu et al., 2025); answers, each the mean of its "
        "tokens (Shao et al., 2024); or answers, each its sum over `max_new_tokens` (Dr. GRPO, Liu et al., 2025)",
    )
    kl: GroupKl = GroupKl()
    entropy: Annotated[float, Field(ge=0, le=10)] = Field(default=0.0, description="weight of the entropy bonus")
    drop_equal: bool = Field(
        default=False, description="groups whose answers all have one reward count nowhere, not even in the mean"
    )
    mask_overlong: bool = Field(
        default=False, description="answers that hit the limit are compared with, and not learnt from"
    )


class Grpo(Group):
    """Group relative policy optimization."""

    std: bool = Field(
        default=True, description="advantages over the standard deviation of their group; false: as Dr. GRPO"
    )


class Rloo(Group):
    """REINFORCE with the mean of the others in the group for a baseline."""

    kl: GroupKl = GroupKl(coef=0.05, where="reward")


class GroupStage(RlStage):
    """What the stages that compare groups of answers have."""

    begun: ClassVar[dict[str, Any]] = {
        "actor": {"model": "models/sft"},
        "reward": {"terms": [{"model": "models/reward"}]},
        "data": "./rows.jsonl",
    }
    answers: Annotated[int, Field(ge=2, le=1024)] = Field(default=8, description="sampled for each prompt: a group")

    @property
    def answers_a_prompt(self) -> int:
        """A group."""
        return self.answers

    @property
    @abstractmethod
    def group(self) -> Group:
        """How answers are compared."""

    @property
    def passes(self) -> Passes:
        """Over an iteration's answers."""
        return self.group


class GrpoStage(GroupStage):
    """Group relative policy optimization: an answer is worth what its reward is above the mean of its group's, over
    their standard deviation (Shao et al., 2024).

    A step is one iteration: a rollout of `rollout.prompts` prompts with `answers` answers each, and its updates. Which
    variant is told by `grpo`.
    """

    traits: ClassVar[Traits] = Traits(rows=("prompt",), lr=1e-6, lr_of_lora=1e-4, headline="grpo/reward")
    type: Literal["grpo"]
    grpo: Grpo = Grpo()

    @property
    def group(self) -> Group:
        """How answers are compared."""
        return self.grpo


class RlooStage(GroupStage):
    """REINFORCE leave-one-out: an answer is worth what its reward is above the mean of the others to the same prompt
    (Ahmadian et al., 2024).

    A step is one iteration: a rollout of `rollout.prompts` prompts with `answers` answers each, and its updates.
    """

    traits: ClassVar[Traits] = Traits(rows=("prompt",), lr=1e-6, lr_of_lora=1e-4, headline="rloo/reward")
    type: Literal["rloo"]
    rloo: Rloo = Rloo()

    @property
    def group(self) -> Group:
        """How answers are compared."""
        return self.rloo
