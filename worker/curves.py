"""TensorBoard files of a job: one folder an attempt, each with the whole curve up to its end."""

import shutil
from pathlib import Path


class Curves:
    """Writes metrics as TensorBoard scalars."""

    def __init__(self, folder: Path, *, resumed_from: int = 0, earlier: Path | None = None):
        """`earlier` is the folder of the attempt that this one goes on from, after step `resumed_from`.

        Its files are copied, since an attempt writes its own folder alone; what it said past `resumed_from` is marked
        as purged, which TensorBoard honours.
        """
        # Imported by those who ask for it: it takes as long as a small job's first step.
        from torch.utils.tensorboard import SummaryWriter

        if earlier != folder:
            # A number that was given again, after a restore, may have left its own here.
            shutil.rmtree(folder, ignore_errors=True)
            if earlier is not None and earlier.is_dir():
                shutil.copytree(earlier, folder)
        self._writer = SummaryWriter(str(folder), purge_step=resumed_from + 1 if resumed_from else None)

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Adds one point to each curve."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Brings what was added to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and ends the file."""
        self._writer.close()
