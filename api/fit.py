"""Whether a model will do where a spec names it: what it is for, and how long its sequences may be."""

from api.weights import Config, Task
from worker.contract.problem import Problem
from worker.contract.references import Wanted
from worker.contract.spec import JobSpec
from worker.contract.stages import RehearseStage

_TASKS: dict[str, Task] = {"model": "write", "reward": "score"}
_SAID: dict[Task, str] = {"write": "a language model", "score": "a reward model (of the stage `reward`)"}


def unfit(spec: JobSpec, wanted: Wanted, called: str, known: Config) -> list[Problem]:
    """What speaks against the model that the reference leads to, `called` so in sentences."""
    return [*_of_another_kind(wanted, called, known), *_too_long(spec, wanted, called, known)]


def _of_another_kind(wanted: Wanted, called: str, known: Config) -> list[Problem]:
    """A model that scores where one that writes is needed, or the other way round."""
    if known.task is None or wanted.kind not in _TASKS or known.task == _TASKS[wanted.kind]:
        return []
    is_, needed = _SAID[known.task], _SAID[_TASKS[wanted.kind]]
    return [Problem(wanted.path, f"{called} is {is_}; give {needed}")]


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
