"""The DeepSpeed engine of one rank: its configuration from the spec, micro-batches, updates, save, load, gather."""

import importlib
import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime import bf16_optimizer, compiler
from deepspeed.runtime.zero import GatheredParameters
from torch import Tensor, nn

from worker.contract.parts import DeepSpeed, Optimizer
from worker.contract.sharding import BUCKET, effective_zero
from worker.contract.spec import JobSpec
from worker.contract.stages import TrainStage
from worker.gradients import discard
from worker.optimizers import SCALE, optimizer_of
from worker.workplace import APART

Compute = Callable[[nn.Module, Any], Tensor]
"""What is computed of a model and a batch (anything with `to(device)`). An objective gives sums over the batch, [k] or
a scalar: the first is the loss."""
Timer = Callable[[str], AbstractContextManager[Any]]
_TAG = "engine"  # DeepSpeed's own files lie in this folder of a checkpoint


class Objective(nn.Module):
    """The model together with what is computed of it, so that DeepSpeed's hooks see one forward a micro-batch."""

    def __init__(self, model: nn.Module, objective: Compute):
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Any, compute: Compute | None = None) -> Tensor:
        """The objective of the micro-batch, or whatever `compute` makes of model and batch."""
        return (compute or self.objective)(self.model, batch)


@dataclass(frozen=True)
class Setting:
    """How one engine shards, computes and updates."""

    deepspeed: DeepSpeed
    optimizer: Optimizer
    ranks: int
    micro_batch: int  # rows a rank at a time
    accumulation: int  # micro-batches an update

    @classmethod
    def of(cls, spec: JobSpec) -> "Setting":
        """That of a job which trains one model."""
        assert isinstance(spec.stage, TrainStage)
        return cls(spec.deepspeed, spec.stage.optimizer, spec.ranks, spec.micro_batch, spec.accumulation)


def deepspeed_config(setting: Setting) -> dict[str, Any]:
    """DeepSpeed's configuration of an engine: what the spec decides, and what its `deepspeed.config` adds."""
    zero = effective_zero(setting.deepspeed)
    bf16 = setting.deepspeed.precision == "bf16"
    told = setting.deepspeed.config.model_dump(exclude_none=True)
    sharding: dict[str, Any] = {
        # DeepSpeed's buckets of 500 M elements are 2 GB a buffer; a model of that size gains nothing from them here.
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
        **told.pop("zero_optimization"),
        "stage": zero,
    }
    if setting.deepspeed.offload == "cpu":
        sharding["offload_optimizer"] = {"device": "cpu"}
    return {
        # Saves every rank a hash and two collectives; the folder's manifest says more.
        "checkpoint": {"tag_validation": "Ignore", "use_node_local_storage": APART in os.environ},
        **told,
        "train_micro_batch_size_per_gpu": setting.micro_batch,
        "gradient_accumulation_steps": setting.accumulation,
        "train_batch_size": setting.micro_batch * setting.accumulation * setting.ranks,
        # Without ZeRO and in fp32 `Engine.step` clips: DeepSpeed would compute the norm and not tell it.
        "gradient_clipping": 0.0 if zero == 0 else setting.optimizer.clip,
        "zero_optimization": sharding,
        "bf16": {"enabled": bf16, "check_grad_overflow": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        # torch's fused AdamW runs on the host too, and has nothing to compile.
        "zero_force_ds_cpu_optimizer": False,
        # Which optimizers go with which stage is the contract's to say, and tested.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }


class Engine:
    """One rank's part of the model, its gradients and its optimizer."""

    def __init__(self, model: nn.Module, objective: Compute, setting: Setting):
        """Wraps `model`. The ranks must have met (`Ranks`); all of them construct at the same time."""
        tame_deepspeed()
        self.model = model
        self.zero = effective_zero(setting.deepspeed)
        settings = setting.optimizer
        self._clip = settings.clip
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        self._moments = settings.moments
        optimizer = optimizer_of(model, settings)
        self._engine, *_ = deepspeed.initialize(
            model=Objective(model, objective),
            optimizer=optimizer,
            model_parameters=self._trained,
            config=deepspeed_config(setting),
            dist_init_required=False,
        )
        self._optimizer: torch.optim.Optimizer = self._engine.basic_optimizer
        self._optimizer.state.clear()
        self._scales = [float(group[SCALE]) for group in self._optimizer.param_groups]

    @property
    def device(self) -> torch.device:
        """Where micro-batches must lie."""
        return torch.device(self._engine.device)

    @property
    def deepspeed(self) -> Any:
        """DeepSpeed's own engine."""
        return self._engine

    def settle(self) -> None:
        """Waits until the accelerator has done what it was given; at once on a host."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def train_micro(self, batch: Any, *, weight: float, last: bool, timer: Timer | None = None) -> Tensor:
        """Forward and backward of one micro-batch; gradients add up until `step`.

        The gradient is that of `weight` x the loss, averaged over the ranks by DeepSpeed. `last` says that `step`
        follows. Gives the objective's sums, [k], without a graph, on the device.
        """
        timer = timer or (lambda _: nullcontext())
        self._engine.train()
        self._engine.set_gradient_accumulation_boundary(last)
        with timer("forward"):
            sums: Tensor = self._engine(batch.to(self.device)).reshape(-1)
        with timer("backward"):
            self._engine.backward(sums[0] * weight, scale_wrt_gas=False)
        return sums.detach()

    def eval_micro(self, batch: Any, compute: Compute | None = None) -> Tensor:
        """The objective's sums, [k], or what `compute` gives: without dropout and without a graph, on the device."""
        self._engine.eval()
        with torch.no_grad():
            found: Tensor = self._engine(batch.to(self.device), compute)
        return found.reshape(-1) if compute is None else found

    def step(self, lr: float) -> float:
        """Updates the weights with what `train_micro` added up. Gives the gradient's norm before clipping.

        With a norm that is not finite the weights stay as they are.
        """
        norm = None
        if self.zero == 0:
            norm = float(torch.nn.utils.clip_grad_norm_(self._trained, self._clip or math.inf))
            if not math.isfinite(norm):
                self.discard_gradients()
                return norm
        # What a checkpoint holds of groups is not asked: one of a release before has no scales.
        for group, scale in zip(self._optimizer.param_groups, self._scales, strict=True):
            group["lr"] = lr * scale
        self._engine.step()
        if norm is None:
            norm = float(self._engine.get_global_grad_norm()) if self._engine.was_step_applied() else math.inf
        return norm

    def discard_gradients(self) -> None:
        """Forgets what `train_micro` has added up since the last step."""
        discard(self._engine)

    def state_bytes_to_come(self) -> list[tuple[torch.device, int]]:
        """Bytes that the first step will allocate for the optimizer's state, by device; none after it."""
        if self._optimizer.state:
            return []
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        if self.zero == 3:  # its parameters are set only during a step
            parameters = list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [(p.device, self._moments * p.numel() * 4) for p in parameters]

    def trained_parts(self) -> list[Tensor]:
        """What this rank holds of the weights that are trained: all of them, or under ZeRO-3 its shards."""
        return [p.ds_tensor if hasattr(p, "ds_tensor") else p.data for p in self._trained]

    def watch_gradients(self) -> Callable[[], list[str]]:
        """Begins to note which trained weights get a gradient; what it gives tells those that got none since asked."""
        names = {name for name, p in self.model.named_parameters() if p.requires_grad}
        reached: set[str] = set()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda _, name=name: reached.add(name))

        def missing() -> list[str]:
            left = sorted(names - reached)
            reached.clear()
            return left

        return missing

    def save(self, folder: Path) -> None:
        """Writes DeepSpeed's checkpoint into `folder`; all ranks call it. Frozen weights are left out."""
        self._engine.save_checkpoint(
            str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=bool(self._frozen)
        )

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote; all ranks call it. It unpickles: only for what this job wrote itself."""

        def load_trained(src: dict[str, Any], dst: nn.Module) -> None:
            result = dst.load_state_dict(src, strict=False)
            missing = {name.removeprefix("model.") for name in result.missing_keys} - self._frozen
            if missing or result.unexpected_keys:
                raise RuntimeError(f"the checkpoint is of another model: {sorted(missing)} {result.unexpected_keys}")

        path, _ = self._engine.load_checkpoint(str(folder), tag=_TAG, custom_load_fn=load_trained)
        if path is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint in {folder.name}")

    def gather(self) -> dict[str, Tensor] | None:
        """The whole model's weights by name, on rank 0's host memory; None on the others. All ranks call it.

        One module at a time is made whole under ZeRO-3. Tied weights are one tensor under several names.
        """
        keep = torch.distributed.get_rank() == 0
        names = set(self.model.state_dict(keep_vars=True)) if self.zero != 3 else None
        state: dict[str, Tensor] = {}
        copies: dict[int, Tensor] = {}
        for prefix, module in self.model.named_modules(remove_duplicate=False):
            parameters = dict(module.named_parameters(recurse=False, remove_duplicate=False))
            with GatheredParameters(list(parameters.values()), enabled=self.zero == 3):
                if not keep:
                    continue
                buffers = {
                    name: buffer
                    for name, buffer in module.named_buffers(recurse=False)
                    if name not in module._non_persistent_buffers_set
                }
                for name, tensor in (parameters | buffers).items():
                    whole = f"{prefix}.{name}" if prefix else name
                    if names is None or whole in names:
                        copies.setdefault(id(tensor), tensor.detach().cpu().clone())
                        state[whole] = copies[id(tensor)]
        return state if keep else None


def zero_raised(wanted: int, runs: int) -> str:
    """What to say of an engine whose ZeRO stage is not the spec's."""
    return (
        f"deepspeed.zero: {wanted} runs as stage {runs} in bf16, so that gradients add up in fp32; nothing else is "
        "computed otherwise"
    )


def tame_deepspeed() -> None:
    """Keeps DeepSpeed from work and words that nobody asked for."""
    # Its shared-memory all-reduce for hosts, and the look whether it could be built. The build takes a minute at the
    # first start, needs a compiler and a folder to write to, and its kernel hangs the other ranks when one dies.
    deepspeed.ops.__compatible_ops__ = {}
    # Prints memory, and collects garbage for half a second, several times a start.
    bf16_optimizer.see_memory_usage = lambda *_, **__: None
    # It asks of every optimizer whether it is its Muon. To import that one is to load torch's compiler, for a second.
    compile_of_torch, compiler.compile = compiler.compile, lambda: compiler.dummy_decorator
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compile_of_torch
