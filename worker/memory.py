"""Running out of memory: recognised, and told with what to change. And the preflight that makes it come first."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from worker.contract.ppo import RlStage
from worker.contract.spec import JobSpec
from worker.contract.stages import TrainStage
from worker.engine import Engine
from worker.errors import OutOfMemory, is_out_of_memory
from worker.packing import Batch
from worker.state import undisturbed


@contextlib.contextmanager
def explained(spec: JobSpec, doing: str) -> Iterator[None]:
    """A block in which running out of memory is raised as OutOfMemory, with what to change."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{doing} did not fit into memory; {advice(spec)}. ({_first_line(error)})") from error


def advice(spec: JobSpec) -> str:
    """What to change in a spec so that it needs less memory, the most harmless first."""
    stage = spec.stage
    assert isinstance(stage, TrainStage | RlStage)
    ways = []
    smaller = [n for n in range(1, spec.micro_batch) if spec.micro_batch % n == 0]
    if smaller:
        ways.append(f"stage.micro_batch: {smaller[-1]} (now {spec.micro_batch}; the same result)")
    learners = stage.learners.items() if isinstance(stage, RlStage) else ()
    roles: dict[str, Any] = {f"stage.{name}": role for name, role in learners} or {"stage": stage}
    for path, role in roles.items():
        if not role.gradient_checkpointing:
            ways.append(f"{path}.gradient_checkpointing: true (the same result, about a third slower)")
    if spec.deepspeed.zero < 3 and spec.ranks > 1:
        ways.append(f"deepspeed.zero: {spec.deepspeed.zero + 1} (now {spec.deepspeed.zero})")
    if spec.deepspeed.precision == "fp32":
        ways.append("deepspeed.precision: bf16 (now fp32)")
    if isinstance(stage, RlStage) and stage.rollout.slots > 1:
        ways.append(
            f"stage.rollout.slots: {stage.rollout.slots // 2} (now {stage.rollout.slots}; it only takes longer)"
        )
    ways += [f"{path}.lora: {{}}" for path, role in roles.items() if role.lora is None]
    ways.append(f"stage.max_length: {max(2, stage.max_length // 2)} (now {stage.max_length})")
    return "write one of " + ", ".join(ways)


def preflight(engine: Engine, longest: Batch, spec: JobSpec) -> None:
    """Forward and backward of the longest micro-batch, with room taken for what the first step will allocate.

    It changes nothing: weights, optimizer state, gradients and random states are bit for bit what they were. Raises
    OutOfMemory.
    """
    doing = f"a micro-batch of {longest.input_ids.shape[0]} rows x {longest.input_ids.shape[1]} tokens"
    with undisturbed(), explained(spec, doing):
        # Filled, since the system hands out pages only when they are written to.
        room = [
            torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
            for device, size in engine.state_bytes_to_come()
        ]
        engine.train_micro(longest, weight=1.0, last=True)
        engine.discard_gradients()
        del room


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
