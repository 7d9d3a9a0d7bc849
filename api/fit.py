"""Whether a model will do where a spec names it: what it is for, and how long its sequences may be."""

from api.weights import Config, Task
from worker.contract.problem import Problem
from worker.contract.references import Wanted
from worker.contract.spec import JobSpec
from worker.contract.stages import RehearseStage

_WHOLE: tuple[Task, ...] = ("write", "score")
# What will do where a spec wants a model of this kind, and how that is called.
_TASKS: dict[str, tuple[tuple[Task, ...], str]] = {
    "model": (("write",), "a language model"),
    "reward": (("score",), "a reward model (of the stage `reward`)"),
    "any_model": (_WHOLE, "a whole model"),
    "tokenizer": (_WHOLE, "a whole model"),
    "rehearsal": (_WHOLE, "a whole model"),
    "adapter": (("adapt",), "the actor's model, or a reward model's adapter"),
    "reward_or_adapter": (("score", "adapt"), "a reward model (of the stage `reward`), or its adapter"),
}
_SAID: dict[Task, str] = {
    "write": "a language model",
    "score": "a reward model",
    "adapt": "only the adapter of a reward model",
}


def unfit(spec: JobSpec, wanted: Wanted, called: str, known: Config, actor: str | None = None) -> list[Problem]:
    """What speaks against the model that the reference leads to, `called` so in sentences.

    `actor` is the hash of a PPO's actor, where that is known.
    """
    return [
        *_of_another_kind(wanted, called, known),
        *_of_another_base(wanted, called, known, actor),
        *_too_long(spec, wanted, called, known),
    ]


def _of_another_kind(wanted: Wanted, called: str, known: Config) -> list[Problem]:
    """A model that scores where one that writes is needed, or the other way round."""
    will_do, needed = _TASKS.get(wanted.kind, ((), ""))
    if known.task is None or not will_do or known.task in will_do:
        return []
    return [Problem(wanted.path, f"{called} is {_SAID[known.task]}; give {needed}")]


def _of_another_base(wanted: Wanted, called: str, known: Config, actor: str | None) -> list[Problem]:
    """An adapter that was trained on other weights than the actor's, which it would be added to."""
    if known.task != "adapt" or wanted.kind not in ("adapter", "reward_or_adapter") or actor is None:
        return []
    if known.base is None:
        return [Problem(wanted.path, f"{called} does not tell in lineage.json which model it was trained on")]
    if known.base != actor:
        said = f"{called} was trained on another model than stage.actor.model; a shared base is one and the same"
        return [Problem(wanted.path, said)]
    return []


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
