"""What the steps of a pipeline hand over, and how the specs of others refer to it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from worker.contract.ppo import PpoStage, RlStage
from worker.contract.references import Wanted, references
from worker.contract.spec import JobSpec
from worker.contract.stages import RehearseStage, TrainStage
from worker.contract.traits import Kind, Nature

PREFIX = "steps/"
"""`{from: STEP.OUTPUT}` is the reference `steps/STEP.OUTPUT`."""

SAID: dict[Nature, str] = {
    "writer": "a language model",
    "scorer": "a reward model",
    "critic": "a critic",
    "classifier": "a classifier",
    "adapter": "an adapter alone",
    "scoring_adapter": "a reward model's adapter alone",
    "rehearsal": "a rehearsal's",
}
# What will do where a spec wants a model of this kind.
_FIT: dict[Kind, tuple[Nature, ...]] = {
    "model": ("writer",),
    "reward": ("scorer",),
    "any_model": ("writer", "scorer", "critic"),
    "classifiable": ("writer", "classifier"),
    "adapter": ("scoring_adapter",),
    "reward_or_adapter": ("scorer", "scoring_adapter"),
    "tokenizer": ("writer", "scorer", "critic", "classifier"),
    "rehearsal": ("rehearsal",),
    "data": (),
}


class Need(NamedTuple):
    """An output of another step that a spec refers to."""

    path: str
    """Where in the spec, such as `stage.actor.model`."""
    step: str
    output: str
    """One of the kinds of `worker.contract.protocol.Output`."""


def outputs(spec: JobSpec) -> Mapping[str, Nature]:
    """What a job of this spec hands over when it succeeds, by the outputs' kinds."""
    found: dict[str, Nature] = {}
    match spec.stage:
        case TrainStage(traits=traits):
            found["model"] = traits.gives
            if spec.stage.lora is not None:
                found["adapter"] = traits.gives_adapter
        case RlStage():
            found["model"] = "writer"
            if isinstance(spec.stage, PpoStage):
                found["critic"] = "critic"
                if spec.stage.ppo.ema is not None:
                    found["ema"] = "writer"
            if spec.stage.actor.lora is not None:
                found["adapter"] = "adapter"
        case RehearseStage() if spec.stage.output:
            found["model"] = "rehearsal"
    return found


def fits(wanted: Wanted, nature: Nature) -> bool:
    """Whether an output of this nature will do for the reference."""
    return nature in _FIT[wanted.kind]


def needs(spec: JobSpec) -> list[Need]:
    """The outputs of other steps that the spec refers to."""
    return [need_of(wanted) for wanted in references(spec) if wanted.reference.startswith(PREFIX)]


def need_of(wanted: Wanted) -> Need:
    """What a reference to a step's output says; without a dot, of the output ``."""
    step, _, output = wanted.reference.removeprefix(PREFIX).partition(".")
    return Need(wanted.path, step, output)


def spelt_out(spec: Any) -> Any:
    """A spec as plain data, each `{from: STEP.OUTPUT}` in its stage as the reference that it is."""
    if not isinstance(spec, dict) or not isinstance(stage := spec.get("stage"), dict):
        return spec
    stage = {name: _spelt_out(value) if name != "reference" else _role(value) for name, value in stage.items()}
    return {**spec, "stage": stage}


def _role(value: Any) -> Any:
    """PPO's reference may be `{from: actor}`, which is none of a step."""
    if isinstance(value, dict) and isinstance(source := value.get("from"), str) and source != "actor":
        return {**{name: inner for name, inner in value.items() if name != "from"}, "model": PREFIX + source}
    return _spelt_out(value) if value != {"from": "actor"} else value


def _spelt_out(value: Any) -> Any:
    if isinstance(value, dict):
        if list(value) == ["from"] and isinstance(value["from"], str):
            return PREFIX + value["from"]
        return {name: _spelt_out(inner) for name, inner in value.items()}
    return [_spelt_out(inner) for inner in value] if isinstance(value, list) else value
