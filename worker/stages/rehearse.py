"""A job's life without a model: steps that wait, and everything else as in all stages.

Its loss is a random walk from the stage's seed. The walk's whole state lies in the checkpoint, so a resumed rehearsal
gives the losses of one that was never stopped, to the last digit. Its samples, if any, are made up from seed and step.
"""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from worker import checkpoint, rehearsed
from worker.channel import Stop
from worker.context import Context
from worker.contract.protocol import Output, Sample
from worker.contract.stages import PlannedFault, RehearseStage
from worker.errors import BadData, Diverged, Stopped
from worker.samples import shown

_CHUNK = 2**20
_START, _PULL, _NOISE = 4.0, 0.02, 0.05
_WORDS = ("rain", "tea", "music", "friends", "morning", "a walk", "the sea", "bread", "old books", "snow")


@dataclass
class Walk:
    """A loss that falls with noise: after `step` steps it is `loss`."""

    draws: random.Random
    step: int = 0
    loss: float = _START

    def advance(self) -> float:
        """Takes the next step and gives its loss."""
        self.step += 1
        self.loss = self.loss * (1 - _PULL) + self.draws.gauss(0.0, _NOISE)
        return self.loss

    def state(self) -> dict[str, Any]:
        """All that the next losses depend on."""
        return {"step": self.step, "loss": self.loss, "draws": self.draws.getstate()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Walk":
        """The walk that `state` was taken from."""
        draws = random.Random()
        version, internal, gauss = state["draws"]
        draws.setstate((version, tuple(internal), gauss))
        return cls(draws, state["step"], state["loss"])


def run(context: Context) -> list[Output]:
    """Rehearses the stage. Raises Stopped, BadData, and what `stage.fault` plans."""
    stage, channel = context.order.spec.stage, context.channel
    assert isinstance(stage, RehearseStage)
    channel.report("loading", step=0, steps=stage.steps)
    begun = rehearsed.taken_over(context.order.inputs["stage.model"]) if stage.model is not None else _START
    walk = _resume(context) or Walk(random.Random(stage.seed), loss=begun)
    saved = walk.step
    channel.report("training", step=walk.step)
    while walk.step < stage.steps:
        if _planned(stage.fault, walk.step + 1, context):
            _fail(stage.fault, context)
        channel.wait_for_stop(stage.seconds_per_step)
        if stop := _agreed(context):
            if stop == "save" and walk.step > saved:
                _save(context, walk, stage.checkpoint_bytes, must=True)
            raise Stopped(f"stopped when asked, after step {walk.step}")
        loss = walk.advance()
        if context.rank == 0:
            channel.report("training", step=walk.step, metrics={"train/loss": loss})
            for sample in _answers(stage, walk.step):
                channel.sample(sample)
        if walk.step % context.order.spec.checkpoint.every_steps == 0:
            if _save(context, walk, stage.checkpoint_bytes):
                saved = walk.step
            channel.report("training")
    return [rehearsed.hand_over(context, walk.loss, walk.step)] if stage.output and context.rank == 0 else []


def _answers(stage: RehearseStage, step: int) -> Iterator[Sample]:
    """What a model might have answered in this step."""
    for index in range(stage.samples):
        draws = random.Random(f"{stage.seed} {step} {index}")
        tokens = [f" {draws.choice(_WORDS)}" for _ in range(draws.randint(3, 12))]
        ended = draws.random() < 0.9
        terms = {"sentiment": draws.uniform(-1.0, 1.0), "length": len(tokens) / 12}
        yield shown(
            step=step,
            index=index,
            prompt=f"What do you think of {draws.choice(_WORDS)}?",
            answer="".join(tokens).strip(),
            tokens=[*tokens, "<end>"] if ended else tokens,
            kl=[draws.gauss(0.05, 0.2) for _ in range(len(tokens) + ended)],
            terms=terms,
            reward=terms["sentiment"] - 0.1 * terms["length"],
            ended=ended,
        )


def _agreed(context: Context) -> Stop | None:
    """What all ranks do now: the strongest wish that any of them has heard."""
    wishes = context.channel.gather(context.channel.stop)
    return "discard" if "discard" in wishes else "save" if "save" in wishes else None


def _resume(context: Context) -> Walk | None:
    """The walk of the job's newest whole checkpoint; None: there is none."""
    path: str | None = None
    if context.rank == 0:
        found, damaged = checkpoint.newest_whole(context.job_folder)
        for sentence in damaged:
            context.channel.event("CheckpointDamaged", sentence, level="warning")
        path = context.relative(found.path) if found is not None else None
    # Rank 0 chooses for all: a rank that chose for itself could see another folder.
    chosen: str | None = context.channel.gather(path)[0]
    if chosen is None:
        if context.rank == 0 and context.order.attempt > 1:
            # What earlier attempts said of any step is said again.
            context.channel.resumed_from(0)
        return None
    walk = Walk.from_state(json.loads((context.store / chosen / f"rank-{context.rank}.json").read_text()))
    if context.rank == 0:
        context.channel.resumed_from(walk.step)
        context.channel.event("Resumed", f"goes on from step {walk.step}", step=walk.step)
    return walk


def _save(context: Context, walk: Walk, ballast: int, *, must: bool = False) -> bool:
    """A sealed checkpoint of all ranks, `ballast` bytes larger than it need be; False: there was no room for it."""
    final = checkpoint.step_folder(context.checkpoints, walk.step)
    began = time.monotonic()
    if context.rank == 0:
        context.channel.report("saving")
    room = context.room(must=must)
    if room and context.keeper:
        checkpoint.temporary_for(final)
    if not all(context.channel.gather(room)):
        return False
    temporary = checkpoint.temporary_name(final)
    (temporary / f"rank-{context.rank}.json").write_text(json.dumps(walk.state()))
    if context.keeper:
        _write_ballast(temporary / "ballast.bin", ballast, walk.step)
    context.channel.gather(None)
    if context.keeper:
        sealed = checkpoint.seal(temporary, final)
        context.channel.checkpoint(checkpoint.announce(final, sealed, step=walk.step, store=context.store))
    if context.rank == 0:
        context.channel.report(step=walk.step, metrics={"time/save": time.monotonic() - began})
    context.channel.gather(None)
    return True


def _write_ballast(path: Path, size: int, step: int) -> None:
    draws = random.Random(step)
    with path.open("wb") as file:
        for offset in range(0, size, _CHUNK):
            file.write(draws.randbytes(min(_CHUNK, size - offset)))


def _planned(fault: PlannedFault | None, step: int, context: Context) -> bool:
    """Whether the fault comes now, here: the last rank has it, so that the others must be ended."""
    return (
        fault is not None
        and fault.step == step
        and fault.attempt in (None, context.order.attempt)
        and context.rank == context.world - 1
    )


def _fail(fault: PlannedFault | None, context: Context) -> None:
    """Fails in the planned way; a stall ends when the attempt is asked to stop."""
    match fault.kind if fault is not None else None:
        case "error":
            raise RuntimeError("a planned error")
        case "killed":
            _kill_this_process()
        case "stall":
            context.channel.wait_for_stop(None)
        case "diverged":
            raise Diverged("a planned loss that is no number")
        case "out_of_memory":
            raise MemoryError("planned")
        case "bad_data":
            raise BadData("a planned row that cannot be trained on")


def _kill_this_process() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL cannot be outlived")
