"""The phases of a stage, and what a rank holds in each at its widest moment."""

from dataclasses import dataclass

from worker.contract import activations
from worker.contract.activations import Rows
from worker.contract.evaluation import EvaluateStage
from worker.contract.ppo import PpoStage, RlStage, Rollout
from worker.contract.roles import Member
from worker.contract.spec import JobSpec
from worker.contract.stages import TrainStage

_FULL = 4  # bytes of an fp32 number


@dataclass(frozen=True)
class Moment:
    """The widest moment of a phase, in bytes of a rank."""

    name: str
    standing: int
    gathered: int = 0
    gradients: int = 0
    buffers: int = 0
    activations: int = 0
    logits: int = 0
    kv_cache: int = 0
    untouched: int = 0
    """Of the buffers: asked for, and never written to."""
    on_host: int = 0
    """Beside an accelerator: what lies on the host."""

    @property
    def total(self) -> int:
        """All of it, on the device."""
        return (
            self.standing + self.gathered + self.gradients + self.buffers
            + self.activations + self.logits + self.kv_cache
        )  # fmt: skip


@dataclass(frozen=True)
class _Stage:
    """What stands in all phases: weights and optimizers of all roles, and buffers that stay."""

    spec: JobSpec
    roles: list[Member]
    more_on_host: int = 0

    @property
    def on_the_processor(self) -> bool:
        return self.spec.resources.accelerator == "none"

    def moment(self, name: str, **more: int) -> Moment:
        offloaded = sum(role.held.on_host for role in self.roles) + self.more_on_host
        standing = sum(role.held.weights + role.held.optimizer for role in self.roles)
        on_host = more.pop("on_host", 0) + offloaded
        return Moment(
            name,
            # On the processor, what is offloaded is beside the rest.
            standing + (offloaded if self.on_the_processor else 0),
            on_host=on_host,
            **more,
        )

    def update(self, name: str, role: Member, rows: Rows) -> Moment:
        held, model, width = role.held, role.model, role.computed.width
        logits = 0
        if role.head == "words":
            logits = activations.logits(model, width, rows.labelled, backward=True)
        peak = activations.backward_peak(
            model, role.computed, rows,
            head=logits, new_gradients=held.new_gradients, checkpointing=role.checkpointing,
        )  # fmt: skip
        others = [r for r in self.roles if r is not role]
        # Roles go through each micro-batch one after the other, and all step at the end.
        before = self.roles[: self.roles.index(role)]
        return self.moment(
            name,
            gathered=held.gathered,
            gradients=held.gradients + sum(r.held.left if r in before else r.held.gradients for r in others),
            buffers=held.bucket + sum(r.held.bucket for r in others if r.held.bucket_stays),
            untouched=held.untouched + sum(r.held.untouched for r in others if r.held.bucket_stays),
            activations=peak - min(logits, peak),
            logits=min(logits, peak),
        )

    def asked(self, name: str, role: Member, rows: Rows, kv_cache: int = 0, logits: int | None = None) -> Moment:
        model, width = role.model, role.computed.width
        if logits is None:
            logits = activations.logits(model, width, rows.labelled, backward=False) if role.head == "words" else 0
        return self.moment(
            name,
            gathered=role.held.gathered,
            gradients=sum(r.held.lasting for r in self.roles),
            buffers=sum(r.held.bucket for r in self.roles if r.held.bucket_stays),
            untouched=sum(r.held.untouched for r in self.roles if r.held.bucket_stays),
            activations=activations.without_a_graph(model, width, rows),
            logits=logits,
            kv_cache=kv_cache,
        )

    def rollout(self, name: str, role: Member, rollout: Rollout, max_length: int, *, answers: int = 1) -> Moment:
        model, width = role.model, role.computed.width
        slots = min(rollout.slots, -(-rollout.prompts * answers // self.spec.ranks))
        cache = slots * max_length * model.layers * 2 * model.keys * width
        # A new answer's prompt is read in one pass; the cache grows by being copied, a layer at a time.
        prompt = Rows(1, max(1, max_length - rollout.max_new_tokens), 1)
        growing = cache // model.layers
        # Logits of the last position, in fp32, sorted where only the likeliest are drawn from.
        copies = 5 if rollout.top_p < 1 else 3
        words = slots * model.vocabulary * (width + copies * _FULL)
        return self.asked(name, role, prompt, kv_cache=cache + growing, logits=words)

    def hand_over(self, role: Member) -> Moment:
        """The whole model's weights are gathered into rank 0's host memory, and written from a copy of them.

        Adapters are merged in fp32, whatever the weights are.
        """
        width = role.computed.width
        whole = (width + (_FULL if role.computed.lora else width)) * role.parameters
        lasting = sum(r.held.lasting for r in self.roles)
        buffers = sum(r.held.bucket for r in self.roles if r.zero == 3)
        untouched = sum(r.held.untouched for r in self.roles if r.zero == 3)
        if self.on_the_processor:
            return self.moment("hand over", gathered=whole, gradients=lasting, buffers=buffers, untouched=untouched)
        return self.moment("hand over", gradients=lasting, buffers=buffers, on_host=whole)


def moments(spec: JobSpec, roles: list[Member]) -> list[Moment]:
    """The phases of a spec's stage, in order."""
    stage = spec.stage
    more = 0
    if isinstance(stage, PpoStage) and stage.ppo.ema is not None:
        more = _FULL * roles[0].trained // (spec.ranks if roles[0].zero == 3 else 1)
    all_ = _Stage(spec, roles, more)
    match stage:
        case RlStage():
            return _of_rl(all_, stage, spec, roles)
        case EvaluateStage():
            return _of_evaluation(all_, stage, roles)
        case TrainStage():
            rows = spec.micro_batch * stage.traits.sequences
            # The last position predicts nothing.
            labelled = rows * (stage.max_length - 1) if stage.traits.worded else 0
            batch = Rows(rows, stage.max_length, labelled, stage.packing)
            asked = [all_.asked(f"ask the {role.name}", role, batch) for role in roles[1:]]
            return [*asked, all_.update("update", roles[0], batch), all_.hand_over(roles[0])]
    return []


def _of_rl(all_: _Stage, stage: RlStage, spec: JobSpec, roles: list[Member]) -> list[Moment]:
    new = min(stage.rollout.max_new_tokens, stage.max_length - 1)
    rows = Rows(spec.micro_batch, stage.max_length, spec.micro_batch * new)
    actor = roles[0]
    found = [all_.rollout("rollout", actor, stage.rollout, stage.max_length, answers=stage.answers_a_prompt)]
    found += [all_.asked(f"score {role.name}", role, rows) for role in roles]
    found += [all_.update(f"update {role.name}", role, rows) for role in roles if role.name in stage.learners]
    if isinstance(stage, PpoStage) and stage.ppo.ptx:
        every = Rows(spec.micro_batch, stage.max_length, spec.micro_batch * (stage.max_length - 1))
        found.append(all_.update("update actor, ptx", actor, every))
    return [*found, all_.hand_over(actor)]


def _of_evaluation(all_: _Stage, stage: EvaluateStage, roles: list[Member]) -> list[Moment]:
    rows = Rows(stage.micro_batch, stage.max_length, stage.micro_batch * (stage.max_length - 1))
    found = []
    if stage.reward is not None:
        found += [
            all_.rollout(f"rollout {role.name}", role, stage.rollout, stage.max_length)
            for role in roles
            if role.head == "words"
        ]
    return found + [all_.asked(f"score {role.name}", role, rows) for role in roles]
