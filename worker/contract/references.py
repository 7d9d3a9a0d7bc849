"""What a spec refers to, and what each reference must be."""

from operator import attrgetter
from typing import NamedTuple

from worker.contract.evaluation import EvaluateStage
from worker.contract.parts import Scratch
from worker.contract.ppo import PpoStage, RlStage
from worker.contract.rewards import ModelTerm, Reward
from worker.contract.rows import RowKind
from worker.contract.spec import JobSpec
from worker.contract.stages import RehearseStage, TrainStage
from worker.contract.traits import Kind


class Wanted(NamedTuple):
    """A reference to resolve, and what it must be."""

    path: str
    """In the spec, such as `stage.reward.terms.0.model`."""
    reference: str
    kind: Kind
    rows: tuple[RowKind, ...] = ()
    """Of data: the kinds of rows that will do."""


def references(spec: JobSpec) -> list[Wanted]:
    """All references to resolve."""
    stage = spec.stage
    match stage:
        case RehearseStage():
            return [Wanted("stage.model", stage.model, "rehearsal")] if stage.model is not None else []
        case RlStage():
            found = [Wanted("stage.actor.model", stage.actor.model, "model")]
            adapters = isinstance(stage, PpoStage) and stage.share_base
            if isinstance(stage, PpoStage):
                own = adapters and stage.critic.model != stage.actor.model
                found.append(Wanted("stage.critic.model", stage.critic.model, "adapter" if own else "any_model"))
            if stage.reference.model is not None:
                found.append(Wanted("stage.reference.model", stage.reference.model, "model"))
            found += _of_terms(stage.reward, adapters=adapters)
            found.append(Wanted("stage.data.prompts", stage.data.prompts, "data", ("prompt",)))
            if stage.data.ptx is not None:
                found.append(Wanted("stage.data.ptx", stage.data.ptx, "data", ("messages",)))
            held_out: tuple[RowKind, ...] = ("prompt",)
        case EvaluateStage():
            rows: tuple[RowKind, ...] = ("text", "messages", "chosen", "answers", "prompt")
            found = [Wanted("stage.model", stage.model, "any_model")]
            if stage.against is not None:
                found.append(Wanted("stage.against", stage.against, "model"))
            found += _of_terms(stage.reward) if stage.reward is not None else []
            return [*found, Wanted("stage.data.test", stage.data.test, "data", rows)]
        case TrainStage():
            found = []
            if not isinstance(stage.model, Scratch):
                found.append(Wanted("stage.model", stage.model, stage.traits.begins_with))
            elif stage.model.tokenizer != "bytes":
                found.append(Wanted("stage.model.tokenizer", stage.model.tokenizer, "tokenizer"))
            found += [Wanted(f"stage.{field}", other, "model") for field, other in others(stage).items()]
            held_out = stage.traits.rows
            found.append(Wanted("stage.data.train", stage.data.train, "data", held_out))
    if spec.evaluate is not None and spec.evaluate.data is not None:
        found.append(Wanted("evaluate.data", spec.evaluate.data, "data", held_out))
    return found


def others(stage: TrainStage) -> dict[str, str]:
    """The references of the other models that a stage asks, by their fields; without those that are not given."""
    found = {field: attrgetter(field)(stage) for field in stage.traits.models}
    return {field: reference for field, reference in found.items() if reference is not None}


def _of_terms(reward: Reward, *, adapters: bool = False) -> list[Wanted]:
    return [
        Wanted(f"stage.reward.terms.{number}.model", term.model, "reward_or_adapter" if adapters else "reward")
        for number, term in enumerate(reward.terms)
        if isinstance(term, ModelTerm)
    ]
