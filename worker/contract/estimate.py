"""The memory that a spec needs, by arithmetic: no torch, no model, milliseconds.

    for each role      what its engine holds all the time                      (worker/contract/sharding.py)
    for each phase     what stands, and what comes on top at its widest moment (worker/contract/activations.py)

Rows are taken as long as `max_length` lets them be, and a loss at every position: more than most data needs, and what
the longest row of a batch may need. Bytes are those of tensors. What a process takes beyond them is said apart.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field

from worker.contract.adapters import adapter_of
from worker.contract.architectures import Architecture, UnknownArchitecture, architecture_of
from worker.contract.evaluation import EvaluateStage
from worker.contract.parts import Lora
from worker.contract.phases import Moment, moments
from worker.contract.ppo import PpoStage, RlStage
from worker.contract.problem import Problem
from worker.contract.roles import Member, Models, members
from worker.contract.spec import JobSpec
from worker.contract.stages import RehearseStage, TrainStage
from worker.contract.values import quantity

BASE = 770 * 2**20
"""Bytes of a rank's process before its first tensor: Python, torch, transformers, DeepSpeed, peft."""
ALLOCATOR = 0.06
"""What the host's allocator takes beyond the tensors' bytes, as a share of them, set up as a rank's is."""
BYTES_VOCABULARY = 259

Bytes = Annotated[int, Field(ge=0, description="bytes")]


class CannotEstimate(ValueError):
    """A spec of which the memory cannot be told, with the reason."""

    def __init__(self, problems: list[Problem]):
        super().__init__("; ".join(f"{p.path}: {p.message}" for p in problems))
        self.problems = problems


class Role(BaseModel):
    """What one model holds on a rank all the time, in bytes. What is offloaded is in `on_host` alone."""

    role: str = Field(examples=["model", "actor", "reward.0"])
    path: str = Field(description="where the spec names the model", examples=["stage.model"])
    parameters: int
    trained: int
    zero: int = Field(description="the ZeRO stage that runs: bf16 without ZeRO runs as 1")
    weights: Bytes
    gradients: Bytes
    optimizer: Bytes = Field(description="moments, and the fp32 copy of weights that are not fp32 or are sharded")
    on_host: Bytes


class Phase(BaseModel):
    """What a rank holds in one phase at its widest moment, in bytes."""

    phase: str = Field(examples=["update", "rollout", "update actor"])
    standing: Bytes = Field(description="weights and optimizers of all roles")
    gathered: Bytes = Field(description="sharded weights, made whole")
    gradients: Bytes
    buffers: Bytes = Field(description="in which DeepSpeed reduces gradients")
    activations: Bytes
    logits: Bytes
    kv_cache: Bytes
    total: Bytes


class Host(BaseModel):
    """Memory of the host, in bytes. On the processor the tensors are all in it."""

    tensors: Bytes = Field(description="that a rank writes to")
    base: Bytes = Field(description="a rank's process before its first tensor")
    allocator: Bytes = Field(description=f"what the allocator takes beyond the tensors: {ALLOCATOR:.0%} of them")
    rank: Bytes
    node: Bytes = Field(description="of all ranks of a node")


class Nearest(BaseModel):
    """The spec that fits, and is nearest to the one given."""

    changes: dict[str, Any] = Field(description="fields of the spec by their path, and what to write there")
    peak: Bytes
    node: Bytes
    costs: list[str] = Field(description="what each change costs, a sentence each")


class Estimate(BaseModel):
    """The memory of a spec."""

    ranks: int
    roles: list[Role]
    phases: list[Phase]
    peak: Bytes = Field(description="tensors of a rank at the widest moment of all")
    peak_phase: str
    host: Host
    device_limit: int | None = Field(description="bytes of an accelerator; absent: not told, or there is none")
    host_limit: int | None = Field(description="bytes of a node; absent: not told")
    fits: bool | None = Field(description="null: no limit was told")
    nearest: Nearest | None = Field(description="where it does not fit: what does; null: nothing that was tried")
    notes: list[str]


def estimate(spec: JobSpec, configs: Mapping[str, dict[str, Any]], memory: str | None = None) -> Estimate:
    """The memory of `spec`, whether it fits, and if not, what does.

    `configs` are the models' config.json by the paths of their references; a model from scratch needs none. `memory`
    is a quantity: of an accelerator where there is one, else of a node; absent, it is `resources.memory`, of a node.
    Raises CannotEstimate.
    """
    from worker.contract.nearest import nearest

    models = models_of(spec, configs)
    found = measured(spec, models)
    on_device = spec.resources.accelerator != "none"
    node = spec.resources.memory if on_device or memory is None else memory
    limits = Limits(int(quantity(memory)) if on_device and memory else None, int(quantity(node)) if node else None)
    found = found.model_copy(update={"device_limit": limits.device, "host_limit": limits.host})
    if limits.device is None and limits.host is None:
        return found
    fits = limits.hold(found)
    return found.model_copy(update={"fits": fits, "nearest": None if fits else nearest(spec, models, limits.hold)})


class Limits:
    """What there is."""

    def __init__(self, device: int | None, host: int | None):
        self.device, self.host = device, host

    def hold(self, found: Estimate) -> bool:
        """Whether what was found is within them."""
        return (self.device is None or found.peak <= self.device) and (
            self.host is None or found.host.node <= self.host
        )


def models_of(spec: JobSpec, configs: Mapping[str, dict[str, Any]]) -> Models:
    """The sizes of each model. Raises CannotEstimate with all that is not known."""
    stage = spec.stage
    if isinstance(stage, RehearseStage):
        raise CannotEstimate([Problem("stage.type", "a rehearsal has no model; it takes next to nothing")])
    found: dict[str, Architecture] = {}
    adapters: dict[str, Lora] = {}
    problems: list[Problem] = []
    wanted: dict[str, tuple[dict[str, Any] | None, int | None]] = {}
    wanted = {path: (configs.get(path), None) for path in _paths(spec)}
    if isinstance(stage, TrainStage) and not isinstance(stage.model, str):
        tokenizer = configs.get("stage.model.tokenizer", {})
        vocabulary = BYTES_VOCABULARY if stage.model.tokenizer == "bytes" else tokenizer.get("vocab_size")
        wanted["stage.model"] = (stage.model.config, vocabulary)
    for path, (config, vocabulary) in wanted.items():
        if config is None:
            problems.append(Problem(path, "its config.json is not to be had, so its sizes are not known"))
            continue
        try:
            if isinstance(spec.stage, PpoStage) and spec.stage.share_base and "peft_type" in config:
                adapters[path] = adapter_of(config)
            else:
                found[path] = architecture_of(config, vocabulary)
        except UnknownArchitecture as error:
            problems.append(Problem(path, str(error)))
    if problems:
        raise CannotEstimate(problems)
    return Models(found | {path: found["stage.actor.model"] for path in adapters}, adapters)


def _paths(spec: JobSpec) -> list[str]:
    from worker.contract.references import references

    return [w.path for w in references(spec) if w.kind not in ("tokenizer", "rehearsal", "data")]


def measured(spec: JobSpec, models: Models) -> Estimate:
    """The memory of a spec with models of known sizes; whether it fits is left open."""
    assert isinstance(spec.stage, TrainStage | RlStage | EvaluateStage)
    roles = members(spec, models)
    phases = moments(spec, roles)
    widest = max(phases, key=lambda moment: moment.total)
    on_host = spec.resources.accelerator == "none"
    if on_host:
        tensors = max(moment.total - moment.untouched for moment in phases)
    else:
        tensors = max(moment.on_host for moment in phases)
    allocator = int(ALLOCATOR * tensors)
    rank = tensors + BASE + allocator
    return Estimate(
        ranks=spec.ranks,
        roles=[_role(member) for member in roles],
        phases=[_phase(moment) for moment in phases],
        peak=widest.total,
        peak_phase=widest.name,
        host=Host(tensors=tensors, base=BASE, allocator=allocator, rank=rank, node=rank * spec.resources.per_node),
        device_limit=None,
        host_limit=None,
        fits=None,
        nearest=None,
        notes=_notes(spec, roles),
    )


def _role(member: Member) -> Role:
    held = member.held
    return Role(
        role=member.name,
        path=member.path,
        parameters=member.parameters,
        trained=member.trained,
        zero=member.zero,
        weights=held.weights,
        gradients=max(held.gradients, held.new_gradients),
        optimizer=held.optimizer,
        on_host=held.on_host,
    )


def _phase(moment: Moment) -> Phase:
    return Phase(
        phase=moment.name,
        standing=moment.standing,
        gathered=moment.gathered,
        gradients=moment.gradients,
        buffers=moment.buffers,
        activations=moment.activations,
        logits=moment.logits,
        kv_cache=moment.kv_cache,
        total=moment.total,
    )


def _notes(spec: JobSpec, roles: list[Member]) -> list[str]:
    notes = [
        f"Rows are taken to have stage.max_length tokens, {_max_length(spec)}, with a loss at each; shorter need less."
    ]
    raised = [member.name for member in roles if member.trained and member.zero != member.deepspeed.zero]
    if raised:
        notes.append(f"{', '.join(raised)}: bf16 without ZeRO runs as stage 1, so that gradients add up in fp32.")
    if isinstance(spec.stage, TrainStage) and spec.stage.traits.sequences == 2:
        notes.append("Each row is taken to have two answers; rows with more of them need as much more for activations.")
    return notes


def _max_length(spec: JobSpec) -> int:
    assert not isinstance(spec.stage, RehearseStage)
    return spec.stage.max_length
