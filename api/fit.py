"""Whether a model will do where a spec names it: what it is for, how long its sequences may be."""

from typing import Any

from api.weights import Config, Task
from worker.contract.parts import Lora
from worker.contract.ppo import PpoStage, RlStage
from worker.contract.problem import Problem
from worker.contract.references import Wanted
from worker.contract.shared import unfit_adapter
from worker.contract.spec import JobSpec
from worker.contract.stages import RehearseStage
from worker.contract.steps import PREFIX as STEPS

_WHOLE: tuple[Task, ...] = ("write", "score", "classify")
# What will do where a spec wants a model of this kind, and how that is called.
_TASKS: dict[str, tuple[tuple[Task, ...], str]] = {
    "model": (("write",), "a language model"),
    "reward": (("score",), "a reward model (of the stage `reward`)"),
    "any_model": (("write", "score"), "a language model or a reward model"),
    "classifiable": (("write", "classify"), "an encoder, a language model or a classifier (of the stage `classify`)"),
    "tokenizer": (_WHOLE, "a whole model"),
    "rehearsal": (_WHOLE, "a whole model"),
    "adapter": (("adapt",), "the actor's model, or a reward model's adapter"),
    "reward_or_adapter": (("score", "adapt"), "a reward model (of the stage `reward`), or its adapter"),
}
_SAID: dict[Task, str] = {
    "write": "a language model",
    "score": "a reward model",
    "classify": "a classifier",
    "adapt": "only the adapter of a reward model",
}

_OUTPUT_LAYERS = {"lm_head", "embed_out"}


def unfit(spec: JobSpec, wanted: Wanted, called: str, known: Config, actor: str | None = None) -> list[Problem]:
    """What speaks against the model that the reference leads to, `called` so in sentences.

    `actor` is the hash of a PPO's actor, where that is known.
    """
    return [
        *_of_another_kind(wanted, called, known),
        *_of_another_base(spec, wanted, called, known, actor),
        *_of_another_shape(spec, wanted, called, known),
        *_without_targets(spec, wanted, called, known),
        *_too_long(spec, wanted, called, known),
    ]


def _of_another_kind(wanted: Wanted, called: str, known: Config) -> list[Problem]:
    """A model that scores where one that writes is needed, or the other way round."""
    will_do, needed = _TASKS.get(wanted.kind, ((), ""))
    if not will_do or known.task in will_do:
        return []
    if known.task is None:
        # An adapter is known by its own files; a model's configuration need not tell what it is for.
        return [Problem(wanted.path, f"{called} is no adapter; give {needed}")] if wanted.kind == "adapter" else []
    return [Problem(wanted.path, f"{called} is {_SAID[known.task]}; give {needed}")]


def _of_another_base(spec: JobSpec, wanted: Wanted, called: str, known: Config, actor: str | None) -> list[Problem]:
    """An adapter that was trained on other weights than the actor's, which it would be added to."""
    if known.task != "adapt" or wanted.kind not in ("adapter", "reward_or_adapter"):
        return []
    if isinstance(spec.stage, PpoStage) and spec.stage.actor.model.startswith(STEPS):
        if wanted.reference.startswith(STEPS):
            return []  # the pipeline has seen to it
        said = f"{called} is there already, and stage.actor.model is yet to be made; a shared base is one and the same"
        return [Problem(wanted.path, said)]
    if actor is None or (known.base is None and wanted.reference.startswith(STEPS)):
        return []
    if known.base is None:
        return [Problem(wanted.path, f"{called} does not tell in lineage.json which model it was trained on")]
    if known.base != actor:
        said = f"{called} was trained on another model than stage.actor.model; a shared base is one and the same"
        return [Problem(wanted.path, said)]
    return []


def _of_another_shape(spec: JobSpec, wanted: Wanted, called: str, known: Config) -> list[Problem]:
    """An adapter with other settings than those of the critic that is to go on from it."""
    if known.task != "adapt" or not isinstance(spec.stage, PpoStage) or not spec.stage.share_base:
        return []
    if wanted.reference.startswith(STEPS):
        return []  # the pipeline has seen to it
    return unfit_adapter(spec.stage, wanted.path, called, known.lora)


def _without_targets(spec: JobSpec, wanted: Wanted, called: str, known: Config) -> list[Problem]:
    """Layers that adapters are to stand beside, and that the model has not."""
    role, _, name = wanted.path.rpartition(".")
    trained: Any = {"stage": spec.stage}
    if isinstance(spec.stage, RlStage):
        trained = {f"stage.{name}": role for name, role in spec.stage.learners.items()}
    lora: Lora | None = getattr(trained.get(role), "lora", None)
    if name != "model" or known.layers is None or lora is None or isinstance(lora.targets, str):
        return []
    # The output layer, of whatever name, the worker knows.
    missing = [target for target in lora.targets if target.rpartition(".")[2] not in known.layers | _OUTPUT_LAYERS]
    if not missing:
        return []
    said = f"{called} has no linear layer `{missing[0]}`; it has: {', '.join(sorted(known.layers))}"
    return [Problem(f"{role}.lora.targets", said)]


def _too_long(spec: JobSpec, wanted: Wanted, called: str, known: Config) -> list[Problem]:
    if wanted.kind == "tokenizer" or known.positions is None or isinstance(spec.stage, RehearseStage):
        return []
    if spec.stage.max_length <= known.positions:
        return []
    which = "the model" if wanted.path == "stage.model" else called
    limit = known.positions
    return [
        Problem("stage.max_length", f"{which} has {limit} positions; write at most that, not {spec.stage.max_length}")
    ]
