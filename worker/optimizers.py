"""Optimizers by name, with the groups of weights that have rates of their own."""

import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from worker.contract.parts import Optimizer
from worker.errors import BadSpec

SCALE = "scale"
"""In a group: what the learning rate is multiplied by."""
# The number of a block, in every architecture of transformers that has any.
_BLOCK = re.compile(r"\.(?:layers?|h|blocks?)\.(\d+)\.")
# What peft puts before a model's own names.
_WRAPPED = "base_model.model."


def optimizer_of(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The optimizer of a model's trained weights; its rate is 0 until the first update brings its own.

    Raises BadSpec for a group that no trained weight belongs to.
    """
    groups = parameter_groups(model, settings)
    betas = (settings.beta1, settings.beta2)
    match settings.name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=settings.eps, fused=True)
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=0.0, d=1.0)
        case "lion":
            return Lion(groups, betas)


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of Chen et al., 2023. DeepSpeed's are compiled where they run, by a compiler that images have not."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]):
        super().__init__(groups, {"lr": 0.0, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all weights that have a gradient."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            gradients = [p.grad for p in weights]
            moments = [self.state[p].setdefault("exp_avg", torch.zeros_like(p)) for p in weights]
            first, second = group["betas"]
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            updates = torch._foreach_lerp(moments, gradients, 1 - first)
            torch._foreach_sign_(updates)
            torch._foreach_add_(weights, updates, alpha=-group["lr"])
            torch._foreach_lerp_(moments, gradients, 1 - second)


def parameter_groups(model: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """The trained weights by what their rate is multiplied by, and their decay. Raises BadSpec."""
    named = {name.removeprefix(_WRAPPED): p for name, p in model.named_parameters() if p.requires_grad}
    for number, group in enumerate(settings.groups):
        for pattern in group.match:
            check_pattern(pattern, list(named), f"stage.optimizer.groups.{number}.match")
    depths = _depths([name.removeprefix(_WRAPPED) for name, _ in model.named_parameters()])
    if settings.layer_decay < 1 and not any(_block_of(name) is not None for name in depths):
        raise BadSpec("stage.optimizer.layer_decay: the names of this model's weights tell no layers; leave it out")
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        scale, decay = settings.layer_decay ** depths[name], settings.weight_decay
        # The later one counts.
        own = [group for group in settings.groups if any(fnmatchcase(name, pattern) for pattern in group.match)][-1:]
        for group in own:
            scale *= group.lr
            decay = settings.weight_decay if group.weight_decay is None else group.weight_decay
        found.setdefault((scale, decay), []).append(parameter)
    return [{"params": its, SCALE: scale, "weight_decay": decay} for (scale, decay), its in found.items()]


def _depths(names: Sequence[str]) -> dict[str, int]:
    """How many layers each weight lies below what reads the last one: by the numbers of blocks, and the order of names.

    What comes before the first block, as embeddings do, lies one below it.
    """
    blocks = {name: block for name in names if (block := _block_of(name)) is not None}
    count = 1 + max(blocks.values(), default=-1)
    first = next((number for number, name in enumerate(names) if name in blocks), 0)
    return {
        name: count - blocks[name] if name in blocks else (count + 1 if number < first else 0)
        for number, name in enumerate(names)
    }


def check_pattern(pattern: str, names: Sequence[str], path: str) -> None:
    """Raises BadSpec where a pattern is the name of nothing."""
    if any(fnmatchcase(name, pattern) for name in names):
        return
    near = difflib.get_close_matches(pattern, names, n=2, cutoff=0.4) or list(names[:2])
    raise BadSpec(f"{path}: `{pattern}` matches no weight that is trained; there is {' and '.join(near)}, for example")


def _block_of(name: str) -> int | None:
    found = _BLOCK.search(f".{name}")
    return int(found[1]) if found else None
