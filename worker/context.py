"""What a stage is given: its order, its place among the ranks, the channel to its launcher and its folders."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from worker.channel import Channel
from worker.contract.order import Order
from worker.errors import BadSpec


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


def store_path(url: str) -> Path:
    """The folder of a `file://` store. Raises BadSpec for any other."""
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise BadSpec(f"the store {url} is not one that this worker can reach: it must be file:///a/folder")
    return Path(unquote(parts.path))
