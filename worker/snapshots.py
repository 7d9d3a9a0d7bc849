"""Training checkpoints of all ranks together: written into one sealed folder, found again, and put back.

A checkpoint says how things stood when an update began. Weights do not change inside an accumulation, so a stop in the
middle of one saves that moment too, and the resumed run computes the update's micro-batches again.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from worker import checkpoint
from worker.context import Context
from worker.distributed import Ranks
from worker.engine import Engine
from worker.errors import BadSpec
from worker.state import Circumstances, Progress, read_rank, restore_random_states, write_rank

_TRAINING = "training.json"


def save(
    context: Context, engine: Engine, ranks: Ranks, *, progress: Progress, random_states: dict[str, Any], data: str
) -> None:
    """Seals a checkpoint of `progress`, whose random states each rank gives; all ranks call it.

    `data` is the hash of what is trained on, in its order. Raises OSError; older checkpoints are whole still.
    """
    final = checkpoint.step_folder(context.checkpoints, progress.step)
    temporary = checkpoint.temporary_name(final)
    if context.rank == 0:
        checkpoint.temporary_for(final)
    try:
        ranks.barrier()
        engine.save(temporary)
        write_rank(temporary, context.rank, random_states)
        if context.rank == 0:
            stored = {
                "progress": asdict(progress),
                "circumstances": asdict(Circumstances.now(context.order.spec, ranks.world)),
                "data": data,
            }
            (temporary / _TRAINING).write_text(json.dumps(stored, indent=1))
        ranks.barrier()
        sealed = checkpoint.seal(temporary, final) if context.rank == 0 else None
    except BaseException:
        # Half a checkpoint is worth nothing, and a full disk needs the room.
        if context.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if sealed is not None:
        context.channel.checkpoint(checkpoint.announce(final, sealed, step=progress.step, store=context.store))
    ranks.barrier()


def restore(context: Context, engine: Engine, ranks: Ranks, data: str) -> tuple[Progress, Path | None]:
    """Puts back the newest whole checkpoint of the job's earlier attempts; all ranks call it.

    Gives the progress to go on from and the checkpoint's folder, or a fresh start and None where there is none.
    Raises BadSpec for a checkpoint that DeepSpeed cannot read into this attempt's shape.
    """
    found = newest(context, ranks)
    if found is None:
        if context.rank == 0 and context.order.attempt > 1:
            # What earlier attempts said of any step is said again.
            context.channel.resumed_from(0)
        return Progress(), None
    stored = json.loads((found / _TRAINING).read_text())
    check_circumstances(context, Circumstances(**stored["circumstances"]), ranks.world)
    if context.rank == 0 and stored["data"] != data:
        context.channel.event(
            "NotExact", "the training data is not what it was when the checkpoint was made", level="warning"
        )
    torch.set_num_threads(stored["circumstances"]["threads"])
    engine.load(found)
    restore_random_states(read_rank(found, context.rank))
    progress = Progress.of(stored["progress"])
    if context.rank == 0:
        context.channel.resumed_from(progress.step)
    return progress, found


def newest(context: Context, ranks: Ranks) -> Path | None:
    """The folder of the newest whole checkpoint of earlier attempts. Rank 0 reads and hashes, the others follow."""
    step = part = attempt = -1
    if context.rank == 0:
        found, damaged = checkpoint.newest_whole(context.job_folder, before_attempt=context.order.attempt)
        for sentence in damaged:
            context.channel.event("CheckpointDamaged", sentence, level="warning")
        if found is not None:
            step, part, attempt = found.step, found.part, found.attempt
    step, part, attempt = ranks.same(step), ranks.same(part), ranks.same(attempt)
    if step < 0:
        return None
    return checkpoint.step_folder(context.job_folder / f"a{attempt}" / "checkpoints", step, part)


def check_circumstances(context: Context, before: Circumstances, world: int) -> None:
    """Raises BadSpec where a checkpoint cannot go on as this attempt is; says in an event where it cannot exactly."""
    now = Circumstances.now(context.order.spec, world)
    if (before.world, before.zero, before.precision) != (now.world, now.zero, now.precision):
        raise BadSpec(
            f"the checkpoint was made by {before.world} ranks at ZeRO {before.zero} in {before.precision}, and goes on "
            f"only so; this attempt has {now.world} ranks at ZeRO {now.zero} in {now.precision}"
        )
    if context.rank == 0 and (differences := now.differences(before)):
        context.channel.event(
            "NotExact", f"going on from the checkpoint, but not bit for bit: {'; '.join(differences)}", level="warning"
        )
