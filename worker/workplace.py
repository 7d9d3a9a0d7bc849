"""Where an attempt works: in its store where that is a folder, else in a folder of this node that stands for it."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from worker.contract.order import Input, Order

APART = "WORKER_APART"
"""Set for ranks of several nodes that do not write into one folder."""


@dataclass(frozen=True)
class Workplace:
    """An order as its ranks get it: all that it names lies in folders."""

    order: Order
    order_file: Path
    folder: Path
    temporary: bool

    def leave(self) -> None:
        """Removes it, where it was made for this attempt alone."""
        if self.temporary:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self.order_file.unlink(missing_ok=True)


def is_bucket(order: Order) -> bool:
    """Whether the order's store is a bucket."""
    return urlsplit(order.store).scheme == "s3"


def made(order: Order) -> Workplace:
    """A workplace for an order whose store is a bucket. Raises OSError."""
    folder = Path(order.scratch) if order.scratch is not None else Path(tempfile.mkdtemp(prefix="rlhf-"))
    folder.mkdir(parents=True, exist_ok=True)
    below = order.store.rstrip("/") + "/"
    inputs = {path: _placed(given, below, folder) for path, given in order.inputs.items()}
    local = order.model_copy(
        update={"store": folder.absolute().as_uri(), "inputs": inputs, "scratch": str(folder.absolute())}
    )
    order_file = folder / f"order-{order.job}-a{order.attempt}.json"
    order_file.write_text(local.model_dump_json())
    return Workplace(local, order_file, folder, temporary=order.scratch is None)


def _placed(given: Input, below: str, folder: Path) -> Input:
    if not given.location.startswith(below):
        return given
    return given.model_copy(update={"location": str(folder.absolute() / given.location.removeprefix(below))})
