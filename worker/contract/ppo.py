"""PPO: an actor that answers prompts, a critic that foresees the reward, a reference that it should stay near."""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from worker.contract.guards import Guards
from worker.contract.parts import DeepSpeed, Lora, Optimizer
from worker.contract.rewards import Reward
from worker.contract.traits import Traits
from worker.contract.values import PositiveInt, Reference, Strict

Share = Annotated[float, Field(ge=0, le=1)]


class Role(Strict):
    """A model that PPO trains. What is absent is the stage's, or the job's."""

    model: Reference
    lora: Lora | None = Field(default=None, description="absent: all weights are trained")
    optimizer: Optimizer | None = Field(default=None, description="absent: `stage.optimizer`")
    deepspeed: DeepSpeed | None = Field(default=None, description="absent: the job's")
    gradient_checkpointing: bool = False


class ReferenceRole(Strict):
    """What the actor should stay near: the actor as it began (`{from: actor}`, or nothing said), or another `model`.

    The actor without its LoRA is what it began as, and takes no memory. One that is trained whole needs a copy.
    """

    model: Reference | None = None
    deepspeed: DeepSpeed | None = Field(default=None, description="absent: the job's; frozen, it has no optimizer")


def _from_actor(value: Any) -> Any:
    if isinstance(value, dict) and value.get("from") == "actor":
        return {key: inner for key, inner in value.items() if key != "from"}
    return value


class Prompts(Strict):
    """The prompts, and rows of dialogues to go on learning from (`ppo.ptx`)."""

    prompts: Reference = Field(description="rows `{prompt, answer?}`; a prompt is a text or messages")
    ptx: Reference | None = Field(default=None, description="rows `{messages}`; needed where `ppo.ptx` is above 0")
    truncate: bool = Field(default=False, description="cut the beginning of prompts that are too long; else refused")


class Rollout(Strict):
    """How answers are sampled. `prompts` counts over all ranks."""

    prompts: PositiveInt = Field(default=64, description="prompts an iteration, over all ranks")
    slots: Annotated[int, Field(ge=1, le=1024)] = Field(default=16, description="answers a rank samples side by side")
    max_new_tokens: PositiveInt = 128
    min_new_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(default=0, description="no end before these")
    temperature: Annotated[float, Field(gt=0, le=10)] = Field(
        default=1.0, description="of sampling, and of all log-probabilities that are compared"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="below 1, what is sampled is not what the log-probabilities are of; 1 is on-policy"
    )
    sharded: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="under ZeRO-3: generate on the sharded model, which is slow; `auto`: where the whole does not fit",
    )


class Kl(Strict):
    """The price of leaving the reference, a token. With a target the coefficient adapts (Ziegler et al., 2019)."""

    coef: Annotated[float, Field(ge=0, le=100)] = 0.05
    target: Annotated[float, Field(gt=0)] | None = Field(default=None, description="nats an answer; absent: fixed")
    horizon: Annotated[float, Field(gt=0)] = Field(default=10_000.0, description="answers over which it adapts")


class Passes(Strict):
    """How often an iteration's answers are learnt from."""

    epochs: PositiveInt = Field(default=1, description="passes over an iteration's answers")
    minibatches: PositiveInt = Field(default=1, description="updates a pass")


class Ppo(Passes):
    """Proximal policy optimization (Schulman et al., 2017)."""

    clip: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2, description="ratios count within 1 - clip … 1 + clip"
    )
    value_clip: Annotated[float, Field(gt=0)] | None = Field(
        default=0.2, description="values count within this of what they were; null: not clipped"
    )
    gamma: Share = 1.0
    lam: Share = Field(default=0.95, description="of generalized advantage estimation")
    kl: Kl = Kl()
    whiten: bool = Field(default=True, description="advantages to mean 0 and standard deviation 1 over an iteration")
    entropy: Annotated[float, Field(ge=0, le=10)] = Field(default=0.0, description="weight of the entropy bonus")
    ptx: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=0.0, description="weight of the loss on `data.ptx` (Ouyang et al., 2022)"
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="decay an iteration of an average of the actor's weights, handed over as `ema`"
    )


class Samples(Strict):
    """How many answers are shown to people, with their rewards: `rlhf samples`."""

    per_step: Annotated[int, Field(ge=0, le=10_000)] = Field(default=200, description="of an iteration, at most")
    total: Annotated[int, Field(ge=0, le=20_000)] = Field(
        default=20_000, description="of the job, shared out evenly among its iterations; the most that are ever kept"
    )


def _prompts_from_reference(value: Any) -> Any:
    return {"prompts": value} if isinstance(value, str) else value


class RlStage(Strict):
    """What the stages of reinforcement learning have."""

    traits: ClassVar[Traits]
    begun: ClassVar[dict[str, Any]]
    actor: Role
    reference: Annotated[ReferenceRole, BeforeValidator(_from_actor)] = ReferenceRole()
    reward: Reward
    data: Annotated[Prompts, BeforeValidator(_prompts_from_reference)] = Field(
        description="a reference to the prompts, or `{prompts, ptx, truncate}`"
    )
    rollout: Rollout = Rollout()
    guards: Guards = Guards()
    samples: Samples = Samples()
    optimizer: Optimizer = Optimizer()
    steps: PositiveInt = Field(default=100, description="iterations")
    micro_batch: PositiveInt | None = Field(
        default=None, description="rows a rank at a time in updates; absent: the most that divides its share, 8 at most"
    )
    max_length: Annotated[int, Field(ge=2, le=2**20)] = Field(default=1024, description="tokens of prompt and answer")
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 17
    tensorboard: bool = Field(default=False, description="also write TensorBoard files, into the attempt's folder")

    @property
    def learners(self) -> dict[str, Role]:
        """The roles that are trained, by their fields."""
        return {"actor": self.actor}

    @property
    def answers_a_prompt(self) -> int:
        """That are sampled in one iteration."""
        return 1

    @property
    @abstractmethod
    def passes(self) -> Passes:
        """Over an iteration's answers."""

    @property
    def rows(self) -> int:
        """Answers of an iteration, over all ranks."""
        return self.rollout.prompts * self.answers_a_prompt


class PpoStage(RlStage):
    """Reinforcement learning from a reward. A step is one iteration: a rollout and its updates."""

    traits: ClassVar[Traits] = Traits(rows=("prompt",), lr=1e-6, lr_of_lora=1e-4, headline="ppo/reward")
    begun: ClassVar[dict[str, Any]] = {
        "actor": {"model": "models/sft"},
        "critic": {"model": "models/reward"},
        "reward": {"terms": [{"model": "models/reward"}]},
        "data": "./rows.jsonl",
    }
    type: Literal["ppo"]
    critic: Role = Field(description="a reward model, or any model: its value head starts at zero")
    share_base: bool = Field(
        default=False,
        description="critic and reward models are adapters on the actor's frozen weights, which are there once: "
        "`critic.model` is the actor's model or a reward stage's `adapter`, reward terms name such adapters",
    )
    ppo: Ppo = Ppo()

    @property
    def learners(self) -> dict[str, Role]:
        """Actor and critic."""
        return {"actor": self.actor, "critic": self.critic}

    @property
    def passes(self) -> Passes:
        """Over an iteration's answers."""
        return self.ppo
