"""The spec that fits and is nearest to one that does not: the fewest changes, the most harmless first."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from pydantic import ValidationError

from worker.contract.check import mixes
from worker.contract.estimate import Estimate, Nearest, measured
from worker.contract.ppo import RlStage
from worker.contract.roles import Models
from worker.contract.spec import JobSpec
from worker.contract.stages import TrainStage

Changes = dict[str, Any]


def nearest(spec: JobSpec, models: Models, holds: Callable[[Estimate], bool]) -> Nearest | None:
    """The cheapest set of changes with which `holds` is true of what the spec then needs; None: none was found."""
    for _, changes, costs in sorted(_choices(spec), key=lambda choice: choice[0]):
        changed = _with(spec, changes)
        if changed is None:
            continue
        found = measured(changed, models)
        if holds(found):
            return Nearest(changes=changes, peak=found.peak, node=found.host.node, costs=costs)
    return None


def _choices(spec: JobSpec) -> Iterator[tuple[float, Changes, list[str]]]:
    """All sets of changes, each with its price and what each change costs."""
    for choice in product(*_dimensions(spec)):
        price = sum(step[0] for step in choice)
        changes = {path: value for step in choice for path, value in step[1].items()}
        if changes:
            yield price, changes, [step[2] for step in choice if step[2]]


def _dimensions(spec: JobSpec) -> list[list[tuple[float, Changes, str]]]:
    """For each field that may change: what it may become, at what price; the first is to leave it."""
    stage = spec.stage
    nothing: tuple[float, Changes, str] = (0.0, {}, "")
    found = []
    if isinstance(stage, TrainStage | RlStage):
        smaller = [n for n in range(1, spec.micro_batch) if spec.micro_batch % n == 0]
        # A little more for each halving: the largest that fits is the fastest.
        found.append(
            [nothing]
            + [
                (1.0 + 0.1 * place, {"stage.micro_batch": n}, "stage.micro_batch: the same result, a little slower")
                for place, n in enumerate(reversed(smaller))
            ]
        )
    checkpointing = _checkpointing(stage)
    if checkpointing:
        found.append([nothing, (2.5, checkpointing, "gradient_checkpointing: the same result, about a third slower")])
    if spec.ranks > 1:
        found.append(
            [nothing]
            + [
                (3.0 + zero, {"deepspeed.zero": zero}, f"deepspeed.zero {zero}: the same result, more traffic")
                for zero in range(spec.deepspeed.zero + 1, 4)
            ]
        )
    if spec.resources.accelerator != "none" and spec.deepspeed.offload == "none":
        offloaded: Changes = {"deepspeed.offload": "cpu"}
        if spec.deepspeed.zero == 0 and spec.ranks == 1:
            offloaded["deepspeed.zero"] = 1
        cost = "deepspeed.offload: the same result, updates on the host are slower"
        found.append([nothing, (7.0, offloaded, cost)])
    if spec.deepspeed.precision == "fp32":
        found.append([nothing, (12.0, {"deepspeed.precision": "bf16"}, "deepspeed.precision: fewer digits, faster")])
    lora = _lora(stage)
    if lora:
        found.append([nothing, (16.0, lora, "lora: adapters are trained instead of all weights")])
    return found


def _checkpointing(stage: object) -> Changes:
    match stage:
        case TrainStage() if not stage.gradient_checkpointing:
            return {"stage.gradient_checkpointing": True}
        case RlStage(learners=roles):
            return {f"stage.{n}.gradient_checkpointing": True for n, r in roles.items() if not r.gradient_checkpointing}
    return {}


def _lora(stage: object) -> Changes:
    match stage:
        case TrainStage() if stage.lora is None and isinstance(stage.model, str):
            return {"stage.lora": {}}
        case RlStage(learners=roles):
            return {f"stage.{name}.lora": {} for name, role in roles.items() if role.lora is None}
    return {}


def _with(spec: JobSpec, changes: Changes) -> JobSpec | None:
    """The spec with the changes; None where they cannot be."""
    document = spec.model_dump(mode="json", exclude_unset=True)
    for path, value in changes.items():
        at: Any = document
        *parents, last = path.split(".")
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    try:
        changed = JobSpec.model_validate(document)
    except ValidationError:
        return None
    return None if mixes(changed) else changed
