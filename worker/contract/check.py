"""Reading a spec: every problem at once, each with its path and what would be right."""

import copy
import difflib
import math
from operator import attrgetter
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from worker.contract.evaluation import EvaluateStage
from worker.contract.mixes import (
    in_vain,
    mixes_of_evaluation,
    mixes_of_rl,
    offload_without_zero,
    scaled_before_it_is_scattered,
    unfit_adafactor,
    warmup_past_the_end,
)
from worker.contract.parts import Scratch
from worker.contract.ppo import RlStage
from worker.contract.problem import Problem
from worker.contract.scratch import mixes_of_scratch
from worker.contract.spec import STAGES, JobSpec
from worker.contract.stages import RehearseStage, TrainStage
from worker.contract.steps import needs, spelt_out

# What the spec itself decides; `deepspeed.config` may not say it a second time.
DECIDED_BY_SPEC = {
    "train_batch_size": "stage.batch",
    "train_micro_batch_size_per_gpu": "stage.micro_batch",
    "gradient_accumulation_steps": "stage.batch and stage.micro_batch",
    "gradient_clipping": "stage.optimizer.clip",
    "optimizer": "stage.optimizer",
    "scheduler": "stage.optimizer.schedule",
    "bf16": "deepspeed.precision",
    "fp16": "deepspeed.precision (fp32 or bf16)",
    "zero_optimization.stage": "deepspeed.zero",
    "zero_optimization.offload_optimizer": "deepspeed.offload",
    "zero_optimization.cpu_offload": "deepspeed.offload",
}
_MUST_BE = "must be "
_MOST_EPOCHS = 10_000
# Deeper than any spec, shallower than any recursion limit.
_MAX_DEPTH = 100
_BRANCHES = ("Scratch", "str", "float", "int", "constrained-str", "constrained-float")


class InvalidSpec(ValueError):
    """A spec that cannot be run, with everything that is wrong about it."""

    def __init__(self, problems: list[Problem]):
        super().__init__("; ".join(f"{p.path}: {p.message}" for p in problems))
        self.problems = problems


def parse_spec(data: Any, *, step: bool = False) -> JobSpec:
    """A spec from plain data; only that of a pipeline's `step` may refer to other steps. Raises InvalidSpec with all
    problems at once."""
    not_finite = _not_finite(data)
    data = spelt_out(data)
    try:
        spec = JobSpec.model_validate(data)
    except ValidationError as error:
        details = error.errors()
        problems = _one_a_path([*not_finite, *(problem(detail, JobSpec) for detail in details)])
        # Fields that are wrong by themselves must not hide a mix that is wrong: look at what is left without them.
        try:
            rest = JobSpec.model_validate(_without(data, [detail["loc"] for detail in details]))
        except ValidationError:
            pass
        else:
            problems = _one_a_path(problems + mixes(rest) + ([] if step else _of_a_pipeline(rest)))
        raise InvalidSpec(problems) from None
    if problems := not_finite + mixes(spec) + ([] if step else _of_a_pipeline(spec)):
        raise InvalidSpec(problems)
    return spec


def _of_a_pipeline(spec: JobSpec) -> list[Problem]:
    """References to steps in a job that stands alone."""
    said = "only a step of a pipeline takes what another one hands over; give a model, such as models/NAME"
    return [Problem(need.path, said) for need in needs(spec)]


def _one_a_path(problems: list[Problem]) -> list[Problem]:
    """One problem for each path: the branches of a union each say what they would have taken."""
    by_path: dict[str, Problem] = {}
    for p in problems:
        before = by_path.setdefault(p.path, p)
        if p.message.startswith(_MUST_BE) and before.message.startswith(_MUST_BE) and p.message != before.message:
            said, _, given = before.message.partition("; got ")
            more = p.message.partition("; got ")[0].removeprefix(_MUST_BE)
            by_path[p.path] = Problem(p.path, f"{said} or {more}" + (f"; got {given}" if given else ""))
        elif before.message.startswith(_MUST_BE) and not p.message.startswith(_MUST_BE):
            by_path[p.path] = p
    return list(by_path.values())


def _not_finite(data: Any) -> list[Problem]:
    """The NaN and infinite numbers anywhere in plain data, also where a spec takes any value.

    Raises InvalidSpec for what is nested too deeply to be looked into any further.
    """
    found, left = [], [("", data, 0)]
    while left:
        path, value, depth = left.pop()
        if depth > _MAX_DEPTH:
            raise InvalidSpec([Problem(path.removeprefix(".")[:200], f"is nested deeper than {_MAX_DEPTH}")])
        if isinstance(value, float) and not math.isfinite(value):
            where = path.removeprefix(".") or "(the whole)"
            found.append(Problem(where, f"must be a finite number; got {value}"))
        elif isinstance(value, dict):
            left += [(f"{path}.{key}", inner, depth + 1) for key, inner in value.items()]
        elif isinstance(value, list):
            left += [(f"{path}.{index}", inner, depth + 1) for index, inner in enumerate(value)]
    return found


def mixes(spec: JobSpec) -> list[Problem]:
    """What is wrong between fields that are each right."""
    match spec.stage:
        case TrainStage():
            found = _train(spec.stage, spec)
        case RlStage():
            found = mixes_of_rl(spec.stage, spec)
        case EvaluateStage():
            found = mixes_of_evaluation(spec.stage)
        case RehearseStage():
            found = []

    def wrong(path: str, message: str) -> None:
        found.append(Problem(path, message))

    if spec.queue.kueue_priority_class is not None and spec.queue.kueue is None:
        wrong("queue.kueue_priority_class", "is a class of Kueue's; name the LocalQueue too, in queue.kueue")
    found += offload_without_zero(spec.deepspeed, "deepspeed") + scaled_before_it_is_scattered(spec.deepspeed)
    if spec.evaluate is not None and isinstance(spec.stage, RehearseStage | EvaluateStage):
        wrong("evaluate", f"a job of {spec.stage.type} has nothing to evaluate on the way; leave it out")
    elif spec.evaluate is not None and (spec.evaluate.data is None) == (spec.evaluate.held_out is None):
        wrong("evaluate", "give one of `data` and `held_out`")
    return found


def _train(stage: TrainStage, spec: JobSpec) -> list[Problem]:
    found: list[Problem] = []

    def wrong(path: str, message: str) -> None:
        found.append(Problem(path, message))

    # Not a bound of the field: a job that was taken by an older version must still be read.
    if stage.epochs is not None and stage.epochs > _MOST_EPOCHS:
        wrong("stage.epochs", f"write at most {_MOST_EPOCHS:,}, or a number of `steps`; got {stage.epochs}")
    if stage.steps is not None and stage.epochs is not None:
        wrong("stage.epochs", "give `steps` or `epochs`, not both")
    if stage.batch % spec.ranks:
        wrong(
            "stage.batch",
            f"{stage.batch} rows do not divide among {spec.ranks} ranks; write a multiple of {spec.ranks}",
        )
    elif stage.micro_batch is not None and stage.batch % (stage.micro_batch * spec.ranks):
        share = stage.batch // spec.ranks
        wrong("stage.micro_batch", f"must divide a rank's share of the batch, {share} rows; got {stage.micro_batch}")
    if isinstance(stage.model, Scratch):
        found += mixes_of_scratch(stage.model, stage.max_length)
        if stage.lora is not None:
            wrong("stage.lora", "a model from scratch has no weights worth freezing; leave `lora` out")
    if stage.freeze and stage.lora is not None:
        wrong("stage.freeze", "with `lora` all weights stay as they are but the adapters; leave one of the two out")
    found += unfit_adafactor(stage.optimizer, spec.deepspeed, "stage.optimizer")
    found += in_vain(stage.optimizer, stage.steps, "stage.optimizer")
    for field in stage.traits.models:
        role = field.rpartition(".")[0]
        if role and (own := getattr(attrgetter(role)(stage), "deepspeed", None)) is not None:
            found += offload_without_zero(own, f"stage.{role}.deepspeed")
    return found + warmup_past_the_end(stage.optimizer, stage.steps, "stage.optimizer") + stage.mixes()


def problem(detail: ErrorDetails, model: type[BaseModel]) -> Problem:
    """One pydantic error as a path and a sentence that says what would be right."""
    kind, message = detail["type"], detail["msg"]
    parts = [str(p) for p in _written(detail["loc"])]
    if kind == "extra_forbidden":  # ends with what a person wrote, though it look like a branch of a union
        parts = [str(p) for p in (*_written(detail["loc"][:-1]), detail["loc"][-1])]
    path = ".".join(parts) or "(the whole)"
    if kind == "extra_forbidden" and (field := DECIDED_BY_SPEC.get(path.removeprefix("deepspeed.config."))):
        return Problem(path, f"is decided by {field}; write it there")
    if kind == "extra_forbidden":
        known = _fields_at(model, parts[:-1], detail["loc"][1:2])
        if parts[-1] in known:  # of another kind of term; this one's kind is named last but one
            return Problem(path, f"is no field of `{detail['loc'][-2]}`; leave it out")
        near = difflib.get_close_matches(parts[-1], known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(sorted(known))}"
        return Problem(path, f"unknown field; {hint}")
    if kind == "missing":
        return Problem(path, "is required")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return Problem(f"{path}.type", f"write one of {', '.join(STAGES)}")
    if kind == "string_pattern_mismatch" and parts and parts[-1] == "name":
        return Problem(
            path, "write 1 to 63 lower-case letters, digits, dots, dashes or underscores; no mark at either end"
        )
    if kind in ("model_type", "dict_type"):
        return Problem(path, "must be an object")
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    message = message.replace("a valid ", "a ").replace("a integer", "a whole number")
    return Problem(path, message[0].lower() + message[1:] + _shown(detail.get("input")))


def _shown(given: Any) -> str:
    """What was given, where that is short; Python writes no number of thousands of digits."""
    if not isinstance(given, str | int | float | bool) or (isinstance(given, int) and given.bit_length() > 256):
        return ""
    return f"; got {given!r}" if len(repr(given)) <= 80 else ""


def _written(location: tuple[int | str, ...]) -> list[int | str]:
    """An error's location as a person wrote it: pydantic also names the branches of unions in it."""
    parts: list[int | str] = []
    for part, before, list_ in zip(location, (None, *location), (None, None, *location), strict=False):
        of_stage = before == "stage" and part in STAGES
        of_term = isinstance(before, int) and list_ == "terms"
        branch = isinstance(part, str) and (part in _BRANCHES or "[" in part)
        if not (of_stage or of_term or branch):
            parts.append(part)
    return parts


def _fields_at(model: type[BaseModel], parts: list[str], tag: tuple[int | str, ...]) -> list[str]:
    """The field names of the model that the path `parts` leads to; in a stage, of that which the tag names."""
    here: list[type[BaseModel]] = [model]
    for part in parts:
        if part == "stage":
            here = [stage for name, stage in STAGES.items() if name in tag]
            continue
        if part.isdigit():
            continue
        here = [m for h in here if part in h.model_fields for m in _models_in(h.model_fields[part].annotation)]
    return sorted({name for m in here for name in m.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in get_args(annotation) for m in _models_in(a)]


def _without(data: Any, locations: list[tuple[int | str, ...]]) -> Any:
    """A copy of `data` without the leaves at `locations`."""
    rest = copy.deepcopy(data)
    for location in locations:
        at: Any = rest
        keys = _written(location)
        for key in keys[:-1]:
            if isinstance(key, int):
                at = at[key] if isinstance(at, list) and key < len(at) else None
            else:
                at = at.get(key) if isinstance(at, dict) else None
        if isinstance(at, dict) and keys:
            at.pop(keys[-1], None)
    return rest
