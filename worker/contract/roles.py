"""The models of a stage: what each is for, and what it holds on a rank."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from worker.contract import sharding
from worker.contract.activations import Computed, adapter_parameters
from worker.contract.architectures import Architecture
from worker.contract.evaluation import EvaluateStage
from worker.contract.parts import DeepSpeed, Lora, Optimizer
from worker.contract.ppo import PpoStage, RlStage
from worker.contract.references import others
from worker.contract.rewards import ModelTerm, Reward
from worker.contract.sharding import Held
from worker.contract.spec import JobSpec
from worker.contract.stages import TrainStage
from worker.contract.traits import Head


@dataclass(frozen=True)
class Member:
    """One model of a stage."""

    name: str
    path: str
    model: Architecture
    head: Head
    deepspeed: DeepSpeed
    computed: Computed
    checkpointing: bool
    parameters: int
    trained: int
    zero: int
    held: Held


@dataclass(frozen=True)
class Models:
    """What the references of a spec lead to, by their paths."""

    whole: Mapping[str, Architecture]
    adapters: Mapping[str, Lora] = field(default_factory=dict)
    """Of references that lead to an adapter alone."""


def members(spec: JobSpec, models: Models) -> list[Member]:
    """All models that have weights of their own."""
    stage = spec.stage
    on_host = spec.resources.accelerator == "none"

    def make(
        name: str,
        path: str,
        deepspeed: DeepSpeed | None = None,
        *,
        head: Head = "words",
        lora: Lora | None = None,
        train: Optimizer | None = None,
        checkpointing: bool = False,
        on_base: bool = False,
    ) -> Member:
        """`on_base`: the weights that adapters are added to are another role's."""
        setting, model = deepspeed or spec.deepspeed, models.whole[path]
        computed = Computed(sharding.WIDTHS[setting.precision], lora, train is None, on_host)
        base = model.parameters(head)
        # The head that scores is trained in full beside adapters.
        adapters = adapter_parameters(model, lora) + (model.hidden if head == "score" else 0) if lora else 0
        trained = (adapters or base) if train else 0
        own = base + (adapters if lora else 0) - (model.hidden if lora and head == "score" else 0)
        if on_base:
            own = adapters
        small = left_whole(model, sharding.persistent(setting), lora)
        if train:
            held = sharding.trained(
                setting,
                trained=trained,
                frozen=own - trained,
                ranks=spec.ranks,
                accumulation=spec.accumulation,
                largest=_largest(model, lora),
                small=small,
                moments=train.moments,
            )
        else:
            held = sharding.asked(setting, numbers=own, ranks=spec.ranks, small=small)
        zero = sharding.effective_zero(setting) if train else setting.zero
        return Member(name, path, model, head, setting, computed, checkpointing, own, trained, zero, held)

    def of_terms(reward: Reward | None) -> list[Member]:
        made = []
        for number, term in enumerate(reward.terms if reward else []):
            if isinstance(term, ModelTerm):
                name, path = f"reward.{number}", f"stage.reward.terms.{number}.model"
                if (lora := models.adapters.get(path)) is not None and isinstance(stage, PpoStage):
                    made.append(make(name, path, stage.actor.deepspeed, head="score", lora=lora, on_base=True))
                else:
                    made.append(make(name, path, term.deepspeed, head="score"))
        return made

    match stage:
        case RlStage():
            found = [
                make(
                    name, f"stage.{name}.model", role.deepspeed, head="score" if name == "critic" else "words",
                    lora=role.lora, train=role.optimizer or stage.optimizer, checkpointing=role.gradient_checkpointing,
                    on_base=name == "critic" and isinstance(stage, PpoStage) and stage.share_base,
                )
                for name, role in stage.learners.items()
            ]  # fmt: skip
            if stage.reference.model is not None:
                found.append(make("reference", "stage.reference.model", stage.reference.deepspeed))
            elif stage.actor.lora is None:
                found.append(make("reference", "stage.actor.model", stage.reference.deepspeed))
            found += of_terms(stage.reward)
            return found
        case EvaluateStage():
            found = [make("model", "stage.model")]
            if stage.against is not None:
                found.append(make("against", "stage.against"))
            return found + of_terms(stage.reward)
        case TrainStage():
            head, checkpointing = stage.traits.head, stage.gradient_checkpointing
            train, lora = stage.optimizer, stage.lora
            found = [make("model", "stage.model", head=head, lora=lora, train=train, checkpointing=checkpointing)]
            for name in others(stage):
                role = attrgetter(name.rpartition(".")[0])(stage) if "." in name else stage
                found.append(make(name.partition(".")[0], f"stage.{name}", getattr(role, "deepspeed", None)))
            return found
    return []


def left_whole(model: Architecture, limit: int, lora: Lora | None) -> int:
    """Numbers in all weights of at most `limit` numbers each."""
    norms = 2 * model.layers + 1
    sizes = [(model.hidden, norms * (2 if model.norm == "layer" else 1))]
    for layer in model.linears:
        sizes.append((layer.inputs * layer.outputs, model.layers))
        sizes += [(layer.outputs, model.layers)] if layer.bias else []
        if lora is not None:
            sizes += [(lora.rank * layer.inputs, model.layers), (lora.rank * layer.outputs, model.layers)]
    sizes.append((model.vocabulary * model.hidden, 1 if model.tied else 2))
    sizes.append((model.learnt_positions * model.hidden, 1))
    return sum(size * count for size, count in sizes if size <= limit)


def _largest(model: Architecture, lora: Lora | None) -> int:
    if lora is None:
        return model.largest
    return max(lora.rank * max(layer.inputs, layer.outputs) for layer in model.linears)
