"""Running out of memory before the first iteration, and not in hour 3: an update on the longest rows there can be."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from worker.contract.ppo import RlStage
from worker.contract.spec import JobSpec
from worker.engine import Engine
from worker.memory import explained
from worker.rl.objectives import AnswerBatch, answer_batch
from worker.rl.prompts import PromptRow
from worker.rl.roles import Roles
from worker.state import undisturbed

Learnt = Callable[[AnswerBatch], list[tuple[Engine, Any]]]
"""What each engine learns from, of answers that have been worth nothing."""


def preflight(spec: JobSpec, roles: Roles, prompts: Sequence[PromptRow], learnt: Learnt) -> None:
    """Forward and backward of all that is trained, with room taken for what the first step will allocate.

    `learnt` gives what each engine learns from, of a batch of answers. It changes nothing: weights, states, gradients
    and random states are bit for bit what they were. Raises OutOfMemory.
    """
    stage = spec.stage
    assert isinstance(stage, RlStage)
    longest = max(prompts, key=len).ids.tolist()
    filler = min(roles.ends)
    rows, new = spec.micro_batch, stage.rollout.max_new_tokens
    batch = answer_batch([longest] * rows, [[filler] * new] * rows, pad_id=roles.pad_id)
    doing = f"a micro-batch of {rows} rows x {batch.input_ids.shape[1]} tokens"
    with undisturbed(), explained(spec, doing):
        # Filled, since the system hands out pages only when they are written to.
        room = [
            torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
            for engine in roles.engines.values()
            for device, size in engine.state_bytes_to_come()
        ]
        for engine, its in learnt(batch):
            engine.train_micro(its, weight=1.0, last=True)
        for engine in roles.engines.values():
            engine.discard_gradients()
        del room
