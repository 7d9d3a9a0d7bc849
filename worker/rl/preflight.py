"""Running out of memory before the first iteration, and not in hour 3: an update on the longest rows there can be."""

from collections.abc import Sequence

import torch

from worker.contract.ppo import PpoStage
from worker.contract.spec import JobSpec
from worker.memory import explained
from worker.rl.objectives import PolicyBatch, ValueBatch, answer_batch
from worker.rl.prompts import PromptRow
from worker.rl.roles import Roles
from worker.state import undisturbed


def preflight(spec: JobSpec, roles: Roles, prompts: Sequence[PromptRow]) -> None:
    """Forward and backward of actor and critic, with room taken for what their first step will allocate.

    It changes nothing: weights, states, gradients and random states are bit for bit what they were. Raises OutOfMemory.
    """
    stage = spec.stage
    assert isinstance(stage, PpoStage)
    longest = max(prompts, key=len).ids.tolist()
    filler = min(roles.ends)
    rows, new = spec.micro_batch, stage.rollout.max_new_tokens
    batch = answer_batch([longest] * rows, [[filler] * new] * rows, pad_id=roles.pad_id)
    nothing = torch.zeros(batch.input_ids.shape)
    doing = f"a micro-batch of {rows} rows x {batch.input_ids.shape[1]} tokens"
    engines = (roles.actor.engine, roles.critic.engine)
    with undisturbed(), explained(spec, doing):
        # Filled, since the system hands out pages only when they are written to.
        room = [
            torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
            for engine in engines
            for device, size in engine.state_bytes_to_come()
        ]
        policy = PolicyBatch(**vars(batch), old_logprobs=nothing, advantages=nothing)
        value = ValueBatch(**vars(batch), old_values=nothing, returns=nothing)
        engines[0].train_micro(policy, weight=1.0, last=True)
        engines[1].train_micro(value, weight=1.0, last=True)
        for engine in engines:
            engine.discard_gradients()
        del room
