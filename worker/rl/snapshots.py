"""Checkpoints of a PPO: several engines, and the iteration in hand, in one sealed folder.

A checkpoint is made between two iterations, or within one (`part`): after a finished chunk of the rollout, or before an
update. What is in hand then lies in it, so that the rest of the iteration is what it would have been.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from worker import checkpoint
from worker.context import Context
from worker.distributed import Ranks
from worker.engine import Engine
from worker.snapshots import check_circumstances, newest
from worker.state import Circumstances, restore_random_states

_TRAINING = "training.json"
_COMMON = "common.pt"


def save(
    context: Context,
    engines: Mapping[str, Engine],
    ranks: Ranks,
    *,
    step: int,
    part: int,
    own: dict[str, Any],
    common: dict[str, Any],
    data: str,
) -> None:
    """Seals a checkpoint; all ranks call it. `own` is each rank's, `common` the same on all; both plain values.

    `data` is the hash of the prompts in their order. Raises OSError; older checkpoints are whole still.
    """
    final = checkpoint.step_folder(context.checkpoints, step, part)
    temporary = checkpoint.temporary_name(final)
    if context.rank == 0:
        checkpoint.temporary_for(final)
    try:
        ranks.barrier()
        for name, engine in engines.items():
            engine.save(temporary / name)
        torch.save(own, temporary / f"rank-{context.rank}.pt")
        if context.rank == 0:
            torch.save(common, temporary / _COMMON)
            stored = {
                "step": step,
                "part": part,
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
        context.channel.checkpoint(checkpoint.announce(final, sealed, step=step, part=part, store=context.store))
    ranks.barrier()


def restore(
    context: Context, engines: Mapping[str, Engine], ranks: Ranks, data: str
) -> tuple[dict[str, Any], dict[str, Any], Path] | None:
    """Puts the engines back as the newest whole checkpoint has them; all ranks call it.

    Gives (`own`, `common`, folder) as they were saved, or None where there is none: then everything begins. Raises
    BadSpec for a checkpoint of another shape.
    """
    found = newest(context, ranks)
    if found is None:
        if context.rank == 0 and context.order.attempt > 1:
            context.channel.resumed_from(0)
        return None
    stored = json.loads((found / _TRAINING).read_text())
    check_circumstances(context, Circumstances(**stored["circumstances"]), ranks.world)
    if context.rank == 0 and stored["data"] != data:
        context.channel.event(
            "NotExact", "the prompts are not what they were when the checkpoint was made", level="warning"
        )
    torch.set_num_threads(stored["circumstances"]["threads"])
    for name, engine in engines.items():
        engine.load(found / name)
    # Plain values and tensors: no code is run by reading them.
    own = torch.load(found / f"rank-{context.rank}.pt", weights_only=True)
    common = torch.load(found / _COMMON, weights_only=True)
    restore_random_states(own["random"])
    if context.rank == 0:
        context.channel.resumed_from(stored["step"])
    return own, common, found
