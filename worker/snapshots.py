"""Training checkpoints of all ranks together: written into one sealed folder, found again, and put back.

A checkpoint says how things stood when an update began. Weights do not change inside an accumulation, so a stop in the
middle of one saves that moment too, and the resumed run computes the update's micro-batches again. Where a step is
long, as an iteration of PPO, a checkpoint may lie within it (`part`), with what is in hand.
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
from worker.errors import BadSpec
from worker.state import Circumstances, restore_random_states

_TRAINING = "training.json"
_COMMON = "common.pt"


def save(
    context: Context,
    engines: Mapping[str, Engine],
    ranks: Ranks,
    *,
    step: int,
    part: int = 0,
    own: dict[str, Any],
    common: dict[str, Any],
    data: str,
    must: bool = True,
) -> bool:
    """Seals a checkpoint of `step`, or of within the step after it (`part`); all ranks call it.

    False: the one before is still on its way to a store in a bucket, and without `must` this one was left out.

    `own` is what each rank gives, its `random` states among it, `common` is the same on all; both are plain values and
    tensors. `data` is the hash of what is learnt from, in its order. Raises OSError; older checkpoints are whole still.
    """
    final = checkpoint.step_folder(context.checkpoints, step, part)
    temporary = checkpoint.temporary_name(final)
    if context.apart and ranks.sum([float(not context.room(must=must))])[0]:
        return False
    if context.keeper:
        checkpoint.temporary_for(final)
    try:
        ranks.barrier()
        for name, engine in engines.items():
            engine.save(temporary / name)
        torch.save(own, temporary / f"rank-{context.rank}.pt")
        if context.keeper:
            torch.save(common, temporary / _COMMON)
            stored = {
                "step": step,
                "part": part,
                "circumstances": asdict(Circumstances.now(context.order.spec, ranks.world)),
                "data": data,
                "models": _models(context),
            }
            (temporary / _TRAINING).write_text(json.dumps(stored, indent=1))
        ranks.barrier()
        sealed = checkpoint.seal(temporary, final) if context.keeper else None
    except BaseException:
        # Half a checkpoint is worth nothing, and a full disk needs the room.
        if context.keeper:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if sealed is not None:
        context.channel.checkpoint(checkpoint.announce(final, sealed, step=step, part=part, store=context.store))
    ranks.barrier()
    return True


def restore(
    context: Context, engines: Mapping[str, Engine], ranks: Ranks, data: str
) -> tuple[dict[str, Any], dict[str, Any], Path] | None:
    """Puts engines and random states back as the job's newest whole checkpoint has them; all call it.

    Gives (`own`, `common`, folder) as they were saved, or None where there is none: then everything begins. Raises
    BadSpec for a checkpoint that DeepSpeed cannot read into this attempt's shape.
    """
    found = _newest(context, ranks)
    if found is None:
        if context.rank == 0 and context.order.attempt > 1:
            # What earlier attempts said of any step is said again.
            context.channel.resumed_from(0)
        return None
    stored = json.loads((found / _TRAINING).read_text())
    _check_circumstances(context, Circumstances(**stored["circumstances"]), ranks.world)
    if context.rank == 0 and stored["data"] != data:
        context.channel.event(
            "NotExact", "the training data is not what it was when the checkpoint was made", level="warning"
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


def _newest(context: Context, ranks: Ranks) -> Path | None:
    """The folder of the job's newest whole checkpoint. Rank 0 reads and hashes, the others follow."""
    step = part = attempt = -1
    if context.rank == 0:
        found, damaged = checkpoint.newest_whole(context.job_folder)
        for sentence in damaged:
            context.channel.event("CheckpointDamaged", sentence, level="warning")
        if found is not None and not _of_other_models(context, found.path):
            step, part, attempt = found.step, found.part, found.attempt
    step, part, attempt = ranks.same(step), ranks.same(part), ranks.same(attempt)
    if step < 0:
        return None
    return checkpoint.step_folder(context.job_folder / f"a{attempt}" / "checkpoints", step, part)


def _models(context: Context) -> dict[str, str]:
    """The models that the job reads, by their paths in the spec, with their hashes."""
    return {path: its.sha256 for path, its in context.order.inputs.items() if path.endswith(("model", "tokenizer"))}


def _of_other_models(context: Context, folder: Path) -> bool:
    """Whether a checkpoint was made of other models than this attempt's, as it may be after a restore."""
    before = json.loads((folder / _TRAINING).read_text()).get("models")  # a release before did not keep it
    others = [path for path, sha256 in _models(context).items() if before is not None and before.get(path) != sha256]
    if others:
        said = f"{folder.name} was made with another model at {others[0]}, and is passed over: the job begins anew"
        context.channel.event("CheckpointOfOthers", said, level="warning")
        # Of the same number, whole ones would be taken for this attempt's own.
        shutil.rmtree(context.checkpoints, ignore_errors=True)
    return bool(others)


def _check_circumstances(context: Context, before: Circumstances, world: int) -> None:
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
