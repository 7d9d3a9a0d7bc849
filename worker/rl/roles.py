"""The models of reinforcement learning, each on its own engine: actor, critic, reference and reward models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from worker.context import Context
from worker.contract.group import GroupStage
from worker.contract.parts import DeepSpeed, Lora, Optimizer
from worker.contract.ppo import PpoStage, RlStage
from worker.contract.rewards import ModelTerm
from worker.contract.spec import JobSpec, learning_rate_of
from worker.dialogue import answer_end, turn_end
from worker.engine import Compute, Engine, Setting, zero_raised
from worker.errors import BadSpec
from worker.heads import transformer
from worker.lora import with_adapters
from worker.losses import token_loss_sum
from worker.memory import explained
from worker.models import DTYPES, Loaded, check_length, positions, pretrained, without_dropout
from worker.packing import MicroBatch
from worker.rl.base import SharedBase, is_adapter
from worker.rl.frozen import Frozen
from worker.rl.group import GroupBatch, group_sums
from worker.rl.objectives import policy_sums, value_sums
from worker.scores import reward_model, value_model


@dataclass(frozen=True)
class Learner:
    """A role that is trained: its engine, its model with its tokenizer, and its schedule."""

    engine: Engine
    loaded: Loaded
    optimizer: Optimizer
    peak_lr: float
    precision: str


class Reference:
    """What the actor should stay near: the actor without its adapters, or a frozen model of its own."""

    def __init__(self, actor: Engine, frozen: Frozen | None):
        self._actor, self._frozen = actor, frozen

    def compute(self, batch: Any, compute: Compute) -> Tensor:
        """What `compute` makes of the reference and a batch, without a graph. All ranks call it."""
        if self._frozen is not None:
            return self._frozen.compute(batch, compute)

        def without_adapters(model: nn.Module, inner: Any) -> Tensor:
            assert isinstance(model, PeftModel)
            with model.disable_adapter():
                return compute(model, inner)

        return self._actor.eval_micro(batch, without_adapters)


@dataclass(frozen=True)
class RewardModel:
    """A reward model, and the tokenizer that it reads by."""

    name: str
    model: Frozen
    tokenizer: PreTrainedTokenizerBase
    limit: int
    """The longest dialogue it reads, in tokens, the answer's end among them; a longer one loses its beginning."""
    reads_ids: bool
    """Whether the actor's tokens are its own, so that nothing has to be tokenized again."""
    end: int
    """The token that every answer it reads ends with."""


@dataclass(frozen=True)
class Roles:
    """All models on this rank."""

    actor: Learner
    critic: Learner | None
    reference: Reference
    rewards: Mapping[str, RewardModel]  # by the term's name
    notes: list[str]
    """What a person should know of them, each a sentence."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The actor's."""
        return self.actor.loaded.tokenizer

    @property
    def pad_id(self) -> int:
        """What the actor's rows are padded with."""
        pad = self.tokenizer.pad_token_id
        assert isinstance(pad, int)  # reading the model has seen to it
        return pad

    @property
    def engines(self) -> dict[str, Engine]:
        """Those that a checkpoint holds."""
        learners = {"actor": self.actor, "critic": self.critic}
        return {name: learner.engine for name, learner in learners.items() if learner is not None}

    @property
    def ends(self) -> frozenset[int]:
        """The tokens at which an answer ends."""
        return ends_of(self.tokenizer)


def load_roles(context: Context) -> Roles:
    """All models, ready on their engines. The ranks must have met.

    Raises BadSpec with the field and what would be right, OutOfMemory.
    """
    spec = context.order.spec
    stage = spec.stage
    assert isinstance(stage, RlStage)
    notes: list[str] = []
    actor, base = _actor(context, spec, stage, notes)
    critic = None
    if isinstance(stage, PpoStage):
        critic = _critic(context, spec, stage, actor.loaded.tokenizer, base, notes)
    reference = Reference(actor.engine, _reference(context, spec, stage, actor, notes))
    rewards = _rewards(context, spec, stage, actor, base, notes)
    return Roles(actor, critic, reference, rewards, notes)


def _actor(context: Context, spec: JobSpec, stage: RlStage, notes: list[str]) -> tuple[Learner, SharedBase | None]:
    """The actor, and what the others share of it."""
    role, path = stage.actor, "stage.actor.model"
    deepspeed = role.deepspeed or spec.deepspeed
    model, tokenizer = pretrained(
        context.order.inputs[path], role.model, context.store, DTYPES[deepspeed.precision], notes,
        path=path, waiting=context.channel.going_on,
    )  # fmt: skip
    if not isinstance(tokenizer.eos_token_id, int) and turn_end(tokenizer) is None:
        raise BadSpec(f"{path}: the tokenizer of {role.model} has no token that ends an answer")
    check_length(model, stage.max_length)
    # Taken before adapters stand in it.
    base = (
        SharedBase(model, tokenizer, context.order.inputs[path])
        if isinstance(stage, PpoStage) and stage.share_base
        else None
    )

    def objective(whole: nn.Module, batch: Any) -> Tensor:
        if isinstance(batch, MicroBatch):  # dialogues to go on learning from
            return token_loss_sum(whole, batch)
        if isinstance(batch, GroupBatch):
            assert isinstance(stage, GroupStage)
            return group_sums(whole, batch, stage.group, stage.rollout.temperature)
        assert isinstance(stage, PpoStage)
        return policy_sums(
            whole, batch, clip=stage.ppo.clip, temperature=stage.rollout.temperature, entropy=stage.ppo.entropy
        )

    return _learner(spec, stage, "actor", model, tokenizer, objective, notes), base


def _critic(
    context: Context,
    spec: JobSpec,
    stage: PpoStage,
    actors: PreTrainedTokenizerBase,
    base: SharedBase | None,
    notes: list[str],
) -> Learner:
    role, path = stage.critic, "stage.critic.model"
    deepspeed = role.deepspeed or spec.deepspeed

    def objective(whole: nn.Module, batch: Any) -> Tensor:
        return value_sums(whole, batch, value_clip=stage.ppo.value_clip)

    if base is not None:
        assert role.lora is not None  # the contract has seen to it
        source = None if role.model == stage.actor.model else context.order.inputs[path]
        adapted = base.critic(role.lora, stage.seed, path=path, name=role.model, source=source)
        return _learner(spec, stage, "critic", adapted, base.tokenizer, objective, notes)
    model, tokenizer = value_model(
        context.order.inputs[path], role.model, context.store, DTYPES[deepspeed.precision], notes,
        path=path, waiting=context.channel.going_on,
    )  # fmt: skip
    if not same_tokens(actors, tokenizer):
        raise BadSpec(f"{path}: {role.model} has another tokenizer than the actor; the critic reads the actor's tokens")
    check_length(model, stage.max_length)
    return _learner(spec, stage, "critic", model, tokenizer, objective, notes)


def _learner(
    spec: JobSpec,
    stage: RlStage,
    name: str,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    objective: Compute,
    notes: list[str],
) -> Learner:
    """A role that is trained. What is no PeftModel yet gets the role's adapters, if it has any."""
    role = stage.learners[name]
    inner = transformer(model)
    if role.gradient_checkpointing:
        if not inner.supports_gradient_checkpointing:
            raise BadSpec(f"stage.{name}.gradient_checkpointing: {role.model} does not support it")
        inner.activation_checkpointing_enable({"use_reentrant": False})
    lora: Lora | None = role.lora
    trained: nn.Module = model
    if lora is not None and not isinstance(model, PeftModel):
        trained = with_adapters(model, lora, stage.seed, head=name == "critic")
    without_dropout(trained)
    deepspeed, optimizer = role.deepspeed or spec.deepspeed, role.optimizer or stage.optimizer
    setting = Setting(deepspeed, optimizer, spec.ranks, spec.micro_batch, spec.accumulation)
    with explained(spec, f"the {name} and its optimizer"):
        engine = Engine(trained, objective, setting)
    if engine.zero != deepspeed.zero:
        notes.append(f"The {name}'s {zero_raised(deepspeed.zero, engine.zero)}.")
    return Learner(
        engine,
        Loaded(trained, tokenizer),
        optimizer,
        learning_rate_of(stage.traits, optimizer, lora),
        deepspeed.precision,
    )


def _reference(context: Context, spec: JobSpec, stage: RlStage, actor: Learner, notes: list[str]) -> Frozen | None:
    role = stage.reference
    if role.model is None and stage.actor.lora is not None:
        return None
    path = "stage.actor.model" if role.model is None else "stage.reference.model"
    deepspeed = role.deepspeed or spec.deepspeed
    # What is to be said of the actor's own model has been said.
    model, tokenizer = pretrained(
        context.order.inputs[path], role.model or stage.actor.model, context.store, DTYPES[deepspeed.precision],
        notes if role.model is not None else [], path=path, waiting=context.channel.going_on,
    )  # fmt: skip
    if not same_tokens(actor.loaded.tokenizer, tokenizer):
        raise BadSpec(f"{path}: {role.model} has another tokenizer than the actor; their tokens cannot be compared")
    check_length(model, stage.max_length)
    return _frozen(spec, "the reference", model, deepspeed, actor.engine.device)


def _rewards(
    context: Context, spec: JobSpec, stage: RlStage, actor: Learner, base: SharedBase | None, notes: list[str]
) -> dict[str, RewardModel]:
    made = {}
    for number, term in enumerate(stage.reward.terms):
        if not isinstance(term, ModelTerm):
            continue
        path = f"stage.reward.terms.{number}.model"
        source, deepspeed = context.order.inputs[path], term.deepspeed or spec.deepspeed
        model: PreTrainedModel | PeftModel
        if base is not None and is_adapter(source):
            if term.deepspeed is not None:
                said = "an adapter on the shared base runs as the actor does; leave it out"
                raise BadSpec(f"stage.reward.terms.{number}.deepspeed: {said}")
            deepspeed = stage.actor.deepspeed or spec.deepspeed
            model, tokenizer = base.reward_model(source, path=path, name=term.model)
        else:
            model, tokenizer = reward_model(
                source, term.model, context.store, DTYPES[deepspeed.precision], notes,
                path=path, waiting=context.channel.going_on,
            )  # fmt: skip
        inner: PreTrainedModel = transformer(model)
        check_length(inner, stage.max_length)
        limit = reading_limit(inner, stage.max_length)
        own = same_tokens(actor.loaded.tokenizer, tokenizer)
        frozen = _frozen(spec, f"the reward model {term.title}", model, deepspeed, actor.engine.device)
        made[term.title] = RewardModel(
            term.model, frozen, tokenizer, limit, own, answer_end(tokenizer, term.model, path)
        )
    return made


def _frozen(spec: JobSpec, what: str, model: nn.Module, setting: DeepSpeed, device: torch.device) -> Frozen:
    with explained(spec, what):
        return Frozen(model, setting, ranks=spec.ranks, device=device)


def reading_limit(model: PreTrainedModel, max_length: int) -> int:
    """How many tokens a reward model reads at most: `max_length` and an answer's end, if it has as many positions."""
    known = positions(model.config)
    return max_length + 1 if known is None else min(max_length + 1, known)


def ends_of(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens at which an answer ends: that which ends a turn, and that which ends a text."""
    known = [turn_end(tokenizer), tokenizer.eos_token_id]
    return frozenset(token for token in known if isinstance(token, int))


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers make the same tokens of a dialogue."""
    return one.get_vocab() == other.get_vocab() and one.chat_template == other.chat_template
