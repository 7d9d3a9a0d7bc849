"""Optimizers as a person would write them down for the tiny llama of the tests, of two layers."""

from typing import Any

import torch

from worker.contract.parts import Optimizer


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of Chen et al., 2023 (Symbolic Discovery of Optimization Algorithms)."""

    def __init__(self, groups: Any, betas: tuple[float, float]):
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.betas = betas

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        first, second = self.betas
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                update = (first * m + (1 - first) * p.grad).sign()
                p.sub_(group["lr"] * (update + group["weight_decay"] * p))
                m.copy_(second * m + (1 - second) * p.grad)


def groups_by_hand(model: torch.nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """A group for each weight: norms have no decay where the settings name a group, and half the rate."""
    made = []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        layer = 0 if ".layers.0." in name else 1 if ".layers.1." in name else -1 if "embed" in name else 2
        times, decay = settings.layer_decay ** (2 - layer), settings.weight_decay
        if settings.groups and "norm" in name:
            times, decay = times * 0.5, 0.0
        made.append({"params": [p], "times": times, "weight_decay": decay})
    return made


def optimizer_by_hand(model: torch.nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The optimizer that settings name."""
    groups, betas = groups_by_hand(model, settings), (settings.beta1, settings.beta2)
    if settings.name == "lion":
        return Lion(groups, betas)
    if settings.name == "adafactor":
        return torch.optim.Adafactor(groups, lr=0.0)
    return torch.optim.AdamW(groups, betas=betas, eps=settings.eps, foreach=False, fused=False)
