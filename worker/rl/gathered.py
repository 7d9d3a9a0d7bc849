"""An engine's model to generate with: under ZeRO-3 whole on every rank for a while, or as it is, all ranks in step.

Each step of a rollout is a forward pass. With the weights sharded, each of its modules asks all ranks for its weights
first, for every single token. So they are gathered once; and DeepSpeed's hooks, which even then cost several times what
a step of a small model does, are taken off meanwhile.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from deepspeed.runtime.zero import GatheredParameters
from torch import Tensor, nn

from worker.contract.ppo import Rollout
from worker.distributed import Ranks
from worker.engine import Engine
from worker.rl.rollout import Answer, Sampler, bare, last_logits
from worker.rl.slots import check_cache


@contextmanager
def gathered(engine: Engine) -> Iterator[nn.Module]:
    """The engine's model in eval mode, whole on this rank's device, to be called as it is and by each rank alone.

    All ranks enter, and leave, at the same time. Afterwards weights are sharded, and modes set, as they were before.
    """
    model = engine.model
    was_training = model.training
    with GatheredParameters(list(model.parameters()), enabled=engine.zero == 3), _without_hooks(engine):
        model.eval()
        try:
            yield model
        finally:
            model.train(was_training)


@contextmanager
def _without_hooks(engine: Engine) -> Iterator[None]:
    """A block in which DeepSpeed does not fetch a module's weights before it runs, nor release them after."""
    if engine.zero != 3:
        yield
        return
    offload = engine.deepspeed.optimizer.parameter_offload
    for hook in offload.forward_hooks + offload.backward_hooks:
        hook.remove()
    # Else they would grow by as many dead ones each time.
    offload.forward_hooks, offload.backward_hooks = [], []
    try:
        yield
    finally:
        # It also forgets in which order modules ran, which it prefetches by, and records that anew.
        offload._register_deepspeed_module(offload.module)


def whole_bytes(engine: Engine) -> int:
    """Bytes that a rank needs to have the whole model, beyond its shard. 0 where it has it anyway."""
    if engine.zero != 3:
        return 0
    sharded: Iterator[Any] = engine.model.parameters()
    return sum(p.ds_numel * p.element_size() for p in sharded)


def whole_fits(engine: Engine, ranks: Ranks, spare: int) -> bool:
    """Whether every rank has the memory for `gathered`, and `spare` bytes besides; the same answer on all ranks."""
    if engine.zero != 3:
        return True
    short = whole_bytes(engine) + spare > _free_bytes(engine.device)
    return ranks.sum([float(short)])[0] == 0


def _free_bytes(device: torch.device) -> int:
    """Bytes that this rank may still take: of its GPU, or its share of the host's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available: int = psutil.virtual_memory().available
    return available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def sample_sharded(
    engine: Engine,
    ranks: Ranks,
    prompts: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    rollout: Rollout,
    slots: int,
    ends: frozenset[int],
    pad_id: int,
    between: Callable[[], None] = lambda: None,
    greedy: bool = False,
) -> list[Answer]:
    """What `rollout.sample` gives, on the sharded model. All ranks call it, each with prompts of its own or none.

    Under ZeRO-3 a forward pass is one of all ranks: a rank that is done goes on with a token of no meaning until all
    are. `between` is called before each, equally often on all ranks. Raises as `sample` does.
    """
    check_cache(bare(engine.model), max(map(len, prompts), default=0) + rollout.max_new_tokens)

    def go_on(busy: bool) -> bool:
        """Whether any rank is at work. To be asked before each forward pass."""
        anyone = ranks.sum([float(busy)])[0] > 0
        if anyone:
            between()
        return anyone

    def forward(**inputs: Any) -> Tensor:
        go_on(True)
        return engine.eval_micro(_Inputs(inputs), _last_logits)

    was_training = engine.model.training
    try:
        with torch.no_grad():
            answers = Sampler(forward, rollout, slots, ends, pad_id, engine.device, greedy).answers(prompts, seeds)
        nothing = torch.full((1, 1), pad_id, device=engine.device)
        while go_on(False):
            engine.eval_micro(_Inputs({"input_ids": nothing}), _last_logits)
    finally:
        engine.model.train(was_training)
    return answers


class _Inputs:
    """What a model is called with, already on its device."""

    def __init__(self, inputs: dict[str, Any]):
        self.inputs = inputs

    def to(self, device: torch.device) -> "_Inputs":
        return self


def _last_logits(model: nn.Module, batch: _Inputs) -> Tensor:
    return last_logits(model, **batch.inputs)
