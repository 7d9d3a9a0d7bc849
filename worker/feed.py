"""What each update sees: a pure function of data, seed and position, so that a resume skips and repeats nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from worker.contract.spec import JobSpec
from worker.contract.stages import TrainStage
from worker.dataset import Dataset
from worker.errors import BadData
from worker.packing import Batch, Item, counts, micro_batches, rows_vary, size_of, updates
from worker.state import Position


@dataclass(frozen=True)
class Update:
    """One rank's part of an update, and what the whole of it holds over all ranks."""

    micro_batches: list[Batch]
    tokens: int  # real ones
    trained: int  # what the loss is a mean over: positions, or rows


class Feed:
    """The updates of a job in order, for one rank."""

    def __init__(self, dataset: Dataset, spec: JobSpec, *, rank: int, world: int, pad_id: int):
        """Raises BadData where there is nothing to train on, or nothing to evaluate."""
        assert isinstance(spec.stage, TrainStage)
        self._dataset, self._spec, self._stage = dataset, spec, spec.stage
        self._rank, self._world, self._pad_id = rank, world, pad_id
        self._epoch: tuple[int, list[list[list[Item]]]] = (-1, [])
        if not any(sample.targets for sample in dataset.train):
            raise BadData("the training data has not one token to train on: no assistant's turn, or all were cut off")
        if dataset.held_out and not any(sample.targets for sample in dataset.held_out):
            raise BadData("the data to evaluate on has not one token with a loss")

    def epoch(self, number: int) -> list[list[list[Item]]]:
        """All updates of an epoch."""
        if self._epoch[0] != number:
            self._epoch = (number, self._updates(self._dataset.train, number, self._stage.batch))
        return self._epoch[1]

    def steps(self) -> int:
        """Updates of the whole job: `steps`, or those of `epochs`, which packing may make of unequal length."""
        if self._stage.steps is not None:
            return self._stage.steps
        epochs = self._stage.epochs or 1
        if self._stage.packing and rows_vary(len(self._dataset.train), split=self._dataset.split):
            return sum(len(self.epoch(number)) for number in reversed(range(epochs)))
        return len(self.epoch(0)) * epochs

    def at(self, position: Position) -> Update:
        """The update that begins at `position`."""
        rows = self.epoch(position.epoch)[position.update]
        tokens, trained = counts(rows)
        return Update(self._collate(rows), tokens, trained)

    def after(self, position: Position) -> Position:
        """The position behind the update at `position`: in the next epoch, where this one ends."""
        if position.update + 1 < len(self.epoch(position.epoch)):
            return Position(position.epoch, position.update + 1)
        return Position(position.epoch + 1, 0)

    def longest(self, position: Position) -> Batch:
        """A micro-batch of the longest rows of the epoch: the one that needs the most memory."""
        rows = [row for update in self.epoch(position.epoch) for row in update]
        longest = sorted(rows, key=lambda row: -size_of(row))[: self._spec.micro_batch * self._world]
        return self._collate(longest)[0]

    def held_out(self) -> list[Batch]:
        """This rank's micro-batches to evaluate on, as many on each rank."""
        if not self._dataset.held_out:
            return []
        rows = self._updates(self._dataset.held_out, 0, self._spec.micro_batch * self._world)
        return [batch for update in rows for batch in self._collate(update)]

    def reference(self, most: int) -> tuple[list[Batch], str]:
        """This rank's micro-batches of the first `most` rows that are held out, or of the training rows where none are.

        And which rows they are, in words.
        """
        held_out = bool(self._dataset.held_out)
        rows = self._dataset.held_out if held_out else self._dataset.train
        chosen = self._updates(rows, 0, most)[0]
        step = self._spec.micro_batch * self._world
        parts = [chosen[start : start + step] for start in range(0, len(chosen), step)]
        of = "the best answers of " + ("held-out rows" if held_out else "training rows")
        return [batch for part in parts for batch in self._collate(part)], of

    def _updates(self, samples: Sequence[Item], epoch: int, batch: int) -> list[list[list[Item]]]:
        pack_to = self._stage.max_length if self._stage.packing else None
        return updates(
            samples, seed=self._stage.seed, epoch=epoch, batch=batch, pack_to=pack_to, split=self._dataset.split
        )

    def _collate(self, rows: list[list[Item]]) -> list[Batch]:
        return micro_batches(
            rows,
            rank=self._rank,
            world=self._world,
            micro_batch=self._spec.micro_batch,
            pad_id=self._pad_id,
            making=self._dataset.collate,
        )
