"""A model that is only asked: a reference, or a reward model. It has no gradients and no optimizer."""

from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from worker.contract.parts import DeepSpeed
from worker.engine import Compute, Objective, tame_deepspeed


class Frozen:
    """One rank's part of a frozen model: whole, or under ZeRO-3 a shard (with `offload: cpu` in host memory)."""

    def __init__(self, model: nn.Module, setting: DeepSpeed, *, ranks: int, device: torch.device):
        """Takes `model` over. The ranks must have met; all of them construct at the same time."""
        self.model = model.requires_grad_(False).eval()
        self.device = device
        self._whole: Objective | Any = Objective(self.model, _nothing)
        if setting.zero < 3:
            self._whole.to(device)
            return
        tame_deepspeed()
        sharding: dict[str, Any] = {"stage": 3, **setting.config.zero_optimization.model_dump(exclude_none=True)}
        if setting.offload == "cpu":
            sharding["offload_param"] = {"device": "cpu"}
        self._whole, *_ = deepspeed.initialize(
            model=self._whole,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "train_batch_size": ranks,
                "zero_optimization": sharding,
                "bf16": {"enabled": setting.precision == "bf16"},
                "steps_per_print": 2**31,
            },
            dist_init_required=False,
        )
        self._whole.eval()

    def compute(self, batch: Any, compute: Compute) -> Tensor:
        """What `compute` makes of the model and a batch, without a graph. Under ZeRO-3 all ranks call it."""
        with torch.no_grad():
            found: Tensor = self._whole(batch.to(self.device), compute)
        return found


def _nothing(model: nn.Module, batch: Any) -> Tensor:
    raise NotImplementedError("a frozen model has no objective of its own")
