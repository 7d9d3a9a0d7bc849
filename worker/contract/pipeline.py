"""The spec of a pipeline: jobs joined by their outputs, checked as a whole before anything starts."""

import difflib
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any

from pydantic import Field, ValidationError

from worker.contract.check import InvalidSpec, parse_spec, problem
from worker.contract.ppo import PpoStage
from worker.contract.problem import Problem
from worker.contract.references import Wanted, references
from worker.contract.shared import unfit_adapter
from worker.contract.spec import JobSpec, Metadata
from worker.contract.steps import PREFIX, SAID, fits, need_of, needs, outputs
from worker.contract.values import Name, Strict

StepName = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9_-]{0,30}[a-z0-9])?$", examples=["sft"])]
_MOST_STEPS = 64
_LONGEST_NAME = 63


class _Pipeline(Strict):
    name: Name | None = Field(default=None, description="absent: `pipeline`; jobs are called NAME-STEP")
    metadata: Metadata = {}


class PipelineSpec(_Pipeline):
    """Jobs that take each other's outputs. Steps that need nothing of each other run side by side.

    A model that another step hands over is `{from: STEP.OUTPUT}`, or `steps/STEP.OUTPUT` for short: `model` of every
    stage that trains, `adapter` with LoRA, and `critic` and `ema` of a ppo.
    """

    steps: Annotated[dict[StepName, JobSpec], Field(min_length=1, max_length=_MOST_STEPS)] = Field(
        description="job specs by the names of their steps"
    )

    @property
    def title(self) -> str:
        """The pipeline's name."""
        return self.name or "pipeline"

    def name_of(self, step: str) -> str:
        """The name of a step's job, and so of what it hands over."""
        return self.steps[step].name or f"{self.title}-{step}"

    def in_order(self) -> list[str]:
        """The steps, each after all that it needs."""
        return list(TopologicalSorter(_edges(self.steps)).static_order())


class _Outline(_Pipeline):
    """A pipeline whose steps were not looked into."""

    steps: Annotated[dict[StepName, dict[str, Any]], Field(min_length=1, max_length=_MOST_STEPS)]


def parse_pipeline(data: Any) -> PipelineSpec:
    """A pipeline from plain data. Raises InvalidSpec with all problems of all steps at once."""
    try:
        outline = _Outline.model_validate(data)
    except ValidationError as error:
        raise InvalidSpec([_problem(detail) for detail in error.errors()]) from None
    problems: list[Problem] = []
    steps: dict[str, JobSpec] = {}
    for name, document in outline.steps.items():
        try:
            steps[name] = parse_spec(document, step=True)
        except InvalidSpec as error:
            problems += [Problem(f"steps.{name}.{p.path}", p.message) for p in error.problems]
    for name, spec in steps.items():
        for wanted in references(spec):
            if not wanted.reference.startswith(PREFIX):
                continue
            if wrong := _wrong(name, wanted, outline.steps, steps) or _other_base(spec, wanted, steps):
                problems.append(Problem(f"steps.{name}.{wanted.path}", wrong))
            else:
                found = _unfit_adapter(spec, wanted, steps)
                problems += [Problem(f"steps.{name}.{p.path}", p.message) for p in found]
    pipeline = PipelineSpec.model_construct(name=outline.name, metadata=outline.metadata, steps=steps)
    problems += [*_circle(steps), *_names(pipeline)]
    if problems:
        raise InvalidSpec(problems)
    return pipeline


def _problem(detail: Any) -> Problem:
    found = problem(detail, PipelineSpec)
    if detail["type"] == "string_pattern_mismatch" and found.path.startswith("steps."):
        return Problem(found.path, "name a step by 1 to 32 lower-case letters, digits, - and _, a letter first")
    return found


def _wrong(name: str, wanted: Wanted, known: Mapping[str, Any], steps: Mapping[str, JobSpec]) -> str | None:
    """What is wrong with a reference to a step's output, in a sentence."""
    if wanted.kind == "data":
        return "no step hands over rows; give an uploaded file (`files/ID`) or a path"
    need = need_of(wanted)
    if not need.output:
        return f"write STEP.OUTPUT, such as {need.step or 'sft'}.model"
    if need.step == name:
        return "a step cannot take what it hands over itself"
    if need.step not in known:
        near = difflib.get_close_matches(need.step, known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(sorted(known))}"
        return f"there is no step `{need.step}`; {hint}"
    if need.step not in steps:
        return None  # what that step hands over is not known before its own spec is right
    made = outputs(steps[need.step])
    if need.output not in made:
        stage = steps[need.step].stage.type
        there = f"hands over: {', '.join(made)}" if made else "hands over nothing"
        return f"`{need.step}` ({stage}) has no output `{need.output}`; it {there}"
    if not fits(wanted, made[need.output]):
        return (
            f"{need.step}.{need.output} is {SAID[made[need.output]]}; give {_NEEDED.get(wanted.kind, 'a whole model')}"
        )
    return None


_NEEDED = {
    "model": "a language model",
    "reward": "a reward model",
    "classifiable": "a language model or a classifier",
    "adapter": "the actor's model, or a reward model's adapter",
    "reward_or_adapter": "a reward model, or its adapter",
    "rehearsal": "a rehearsal's output",
}


def _other_base(spec: JobSpec, wanted: Wanted, steps: Mapping[str, JobSpec]) -> str | None:
    """A sentence where an adapter that a PPO would put on its actor's weights was trained on others."""
    need = need_of(wanted)
    if need.output != "adapter" or not isinstance(spec.stage, PpoStage) or need.step not in steps:
        return None
    base, actor = getattr(steps[need.step].stage, "model", None), spec.stage.actor.model
    # Two names may lead to one model; what a step hands over has but one.
    if base == actor or not any(isinstance(name, str) and name.startswith(PREFIX) for name in (base, actor)):
        return None
    return f"`{need.step}` adapts {base}, and the actor is {actor}; on a shared base they must be the same model"


def _unfit_adapter(spec: JobSpec, wanted: Wanted, steps: Mapping[str, JobSpec]) -> list[Problem]:
    """What speaks against the adapter that another step would hand over to a PPO on a shared base."""
    need = need_of(wanted)
    if need.output != "adapter" or not isinstance(spec.stage, PpoStage) or need.step not in steps:
        return []
    lora = getattr(steps[need.step].stage, "lora", None)
    return unfit_adapter(spec.stage, wanted.path, f"{need.step}.{need.output}", lora)


def _edges(steps: Mapping[str, JobSpec]) -> dict[str, list[str]]:
    """Which steps each step needs; a step that needs itself is told of elsewhere."""
    return {
        name: [need.step for need in needs(spec) if need.step in steps and need.step != name]
        for name, spec in steps.items()
    }


def _circle(steps: Mapping[str, JobSpec]) -> Iterator[Problem]:
    try:
        TopologicalSorter(_edges(steps)).prepare()
    except CycleError as error:
        round_: list[str] = error.args[1]
        yield Problem(f"steps.{round_[1]}", f"waits for itself: {' -> '.join(round_)}")


def _names(pipeline: PipelineSpec) -> Iterator[Problem]:
    """Names that are too long, or given twice: two models would be versions of one, in the order of chance."""
    taken: dict[str, str] = {}
    for step in pipeline.steps:
        name = pipeline.name_of(step)
        if len(name) > _LONGEST_NAME:
            said = f"its job would be called {name}, which has {len(name)} characters; give it a name of at most 63"
            yield Problem(f"steps.{step}.name", said)
        if (other := taken.setdefault(name, step)) != step:
            yield Problem(f"steps.{step}.name", f"`{other}` is called {name} too; give each its own name")
