"""What a rehearsal hands over: a folder like a model's, whose one weight is the loss that its walk came to.

It takes no torch to write or to read, and goes from job to job as models do, with hashes and lineage.
"""

import json
import struct
from pathlib import Path

from worker import ahead, checkpoint
from worker.context import Context
from worker.contract.manifest import LINEAGE
from worker.contract.order import Input
from worker.contract.protocol import Output
from worker.errors import BadData
from worker.lineage import lineage
from worker.paths import local_path

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_TYPE = {"model_type": "rehearsal"}
# The whole of the format (safetensors): the header's length, the header, the numbers.
_HEADER = json.dumps({"loss": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}).encode()


def hand_over(context: Context, loss: float, step: int) -> Output:
    """Seals `loss` as the attempt's model; only one rank calls it. Raises OSError."""
    final = context.outputs / "model"
    folder = checkpoint.temporary_for(final)
    write(folder, loss)
    (folder / LINEAGE).write_text(json.dumps(lineage(context.order, step), indent=1, sort_keys=True) + "\n")
    sealed = checkpoint.seal(folder, final)
    return Output(kind="model", path=context.relative(final), bytes=sealed.total_bytes, sha256=sealed.sha256)


def write(folder: Path, loss: float) -> None:
    """Writes what stands for a configuration and weights. Raises OSError."""
    (folder / _CONFIG).write_text(json.dumps(_TYPE) + "\n")
    (folder / _WEIGHTS).write_bytes(struct.pack("<Q", len(_HEADER)) + _HEADER + struct.pack("<d", loss))


def taken_over(source: Input) -> float:
    """The loss that another rehearsal came to. Raises BadData, OSError."""
    folder = local_path(source.location)
    if ahead.tree_hash(folder) != source.sha256:
        raise BadData(f"{source.reference} has changed since the job was made: its hash is not {source.sha256[:12]}…")
    weights = (folder / _WEIGHTS).read_bytes() if folder.is_dir() and (folder / _WEIGHTS).is_file() else b""
    if weights[8:-8] != _HEADER:
        raise BadData(f"{source.reference} is not what a rehearsal hands over")
    loss: float = struct.unpack("<d", weights[-8:])[0]
    return loss
