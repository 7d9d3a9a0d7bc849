"""An average of the actor's weights over iterations, which forgets slowly. It is often the better model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from worker.engine import Engine


class Ema:
    """What is trained of an engine's model, averaged: `decay` x average + (1 - decay) x now, each iteration, in fp32.

    Under ZeRO-3 each rank averages its own shard. It lies on the host.
    """

    def __init__(self, engine: Engine, decay: float):
        self._decay = decay
        self._parts = engine.trained_parts()
        self._average = [part.detach().float().cpu().clone() for part in self._parts]

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights as they are now."""
        for average, part in zip(self._average, self._parts, strict=True):
            average.lerp_(part.detach().float().cpu(), 1 - self._decay)

    def state(self) -> list[Tensor]:
        """All that goes into a checkpoint, of this rank."""
        return self._average

    def load(self, state: list[Tensor]) -> None:
        """Puts back what `state` gave."""
        for average, stored in zip(self._average, state, strict=True):
            average.copy_(stored)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """A block in which the model has the average for its weights."""
        now = [part.detach().cpu().clone() for part in self._parts]
        for part, average in zip(self._parts, self._average, strict=True):
            part.copy_(average)
        try:
            yield
        finally:
            for part, before in zip(self._parts, now, strict=True):
                part.copy_(before)
