"""What the model as it began says of a job's answers: asked once, before the first step, and kept from then on."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worker.engine import Compute
from worker.errors import BadData
from worker.feed import Feed
from worker.method import Loop
from worker.packing import Batch
from worker.state import Position, undisturbed


class Reference:
    """Log-probabilities by number: of each sequence that the job has, whatever order and company it comes in."""

    def __init__(self, size: int):
        self._values = torch.zeros(size)

    def of(self, numbers: Tensor) -> Tensor:
        """The log-probabilities, in nats, of the sequences with these numbers."""
        if self._values.device != numbers.device:
            self._values = self._values.to(numbers.device)
        return self._values[numbers]

    def ask(self, loop: Loop, compute: Compute, numbers: Callable[[Any], Tensor]) -> None:
        """Asks the model as it is now, over all ranks; `compute` gives what `numbers` names the places of.

        In the batches of the first epoch, as far as the job goes, and in those of evaluations: so the first update
        compares the model with itself to the last bit.
        """
        began = time.monotonic()
        loop.context.channel.report("scoring")
        found = torch.zeros(len(self._values), dtype=torch.float64)
        for batch in _batches(loop.feed):
            loop.between()
            if not batch.trained:  # of padding, to keep the other ranks company
                loop.engine.eval_micro(batch, compute)
                continue
            with undisturbed():
                found[numbers(batch).cpu()] = loop.engine.eval_micro(batch, compute).double().cpu()
        self._values = torch.tensor(loop.ranks.sum(found.tolist()), dtype=torch.float32)
        if loop.context.rank == 0:
            seconds = time.monotonic() - began
            loop.context.channel.event(
                "ReferenceAsked",
                f"what the model as it began says of {len(found)} answers was computed in {seconds:.1f} s, and is kept",
            )

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"reference": self._values.cpu()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from `state`. Raises BadData where it is of other rows."""
        values = state.get("reference")
        if not isinstance(values, Tensor) or values.shape != self._values.shape:
            raise BadData(
                "the checkpoint's log-probabilities are not of these rows, and the model that gave them is gone; "
                "submit the job anew"
            )
        self._values = values


def _batches(feed: Feed) -> list[Batch]:
    updates = min(feed.steps(), len(feed.epoch(0)))
    batches = [batch for update in range(updates) for batch in feed.at(Position(0, update)).micro_batches]
    return batches + feed.held_out()
