"""What a stage is given: its order, its place among the ranks, the channel to its launcher and its folders."""

from dataclasses import dataclass
from pathlib import Path

from worker.channel import Channel
from worker.contract.order import Order


@dataclass(frozen=True)
class Context:
    """One rank's view of one attempt."""

    order: Order
    rank: int
    world: int
    channel: Channel
    store: Path
    """The store's root on this machine."""

    @property
    def apart(self) -> bool:
        """Whether each node has a folder of its own for the store, which its launcher keeps in step with a bucket."""
        return self.order.scratch is not None

    @property
    def keeper(self) -> bool:
        """Whether this rank makes and seals the folders that others write into too: one does, or one on each node."""
        return self.rank == 0 or (self.apart and self.rank % self.order.spec.resources.per_node == 0)

    def room(self, *, must: bool) -> bool:
        """Whether there is room for another checkpoint; asked by the keepers, before they make its folder."""
        return self.channel.room(must=must) if self.apart and self.keeper else True

    @property
    def folder(self) -> Path:
        """The attempt's own folder in the store, the only one it writes."""
        return self.store / self.order.folder

    @property
    def job_folder(self) -> Path:
        """The job's folder: all its attempts' folders lie in it; older ones are only read."""
        return self.store / self.order.job_folder

    @property
    def checkpoints(self) -> Path:
        """Where this attempt's checkpoints are sealed."""
        return self.folder / "checkpoints"

    @property
    def outputs(self) -> Path:
        """Where this attempt's outputs are sealed."""
        return self.folder / "outputs"

    def relative(self, path: Path) -> str:
        """A path in the store as messages name it: relative to the store's root."""
        return path.relative_to(self.store).as_posix()
