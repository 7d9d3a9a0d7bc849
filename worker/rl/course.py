"""What happens around the iterations of reinforcement learning: going on, stopping, saving, telling, handing over."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch

from worker import snapshots
from worker.context import Context
from worker.contract.metrics import known
from worker.contract.ppo import PpoStage, RlStage
from worker.contract.protocol import Output
from worker.curves import Curves
from worker.distributed import Ranks, Stop
from worker.errors import Diverged, Interrupted, ServiceAway, Stopped
from worker.memory import explained
from worker.rl.ema import Ema
from worker.rl.hand import Hand
from worker.rl.roles import Learner, Roles
from worker.state import random_states
from worker.stopwatch import Stopwatch


class Kept(Protocol):
    """Something whose state goes into a checkpoint, as plain values."""

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


class Course:
    """How far one rank's training is, and what has to be kept of it."""

    def __init__(self, context: Context, roles: Roles, ranks: Ranks, kept: Mapping[str, Kept], data: str):
        """`kept` is saved and put back by name; `data` is the hash of the prompts."""
        stage = context.order.spec.stage
        assert isinstance(stage, RlStage)
        self.context, self.stage, self.roles, self.ranks = context, stage, roles, ranks
        self.kind = context.order.spec.stage.type
        """The stage's type: its curves' names begin with it."""
        self.step = 0
        """Iterations that are done."""
        self.tokens = 0
        """Tokens sampled in them, over all ranks."""
        self.evaluated: int | None = None
        """The step of the last evaluation, so that a resume does not repeat it."""
        self.hand: Hand | None = None
        """The iteration that was begun and is not done."""
        decay = stage.ppo.ema if isinstance(stage, PpoStage) else None
        self.ema = Ema(roles.actor.engine, decay) if decay is not None else None
        self._kept, self._data = kept, data
        self._saved = self._mark
        earlier = self._restore()
        self._curves = self._open_curves(earlier)

    @property
    def _mark(self) -> tuple[int, int, int | None]:
        """What a checkpoint would add to the last one: an evaluation counts, too."""
        return self.step, self.hand.part if self.hand is not None else 0, self.evaluated

    def _restore(self) -> Path | None:
        found = snapshots.restore(self.context, self.roles.engines, self.ranks, self._data)
        if found is None:
            return None
        own, common, folder = found
        self.step, self.tokens, self.evaluated = common["step"], common["tokens"], common["evaluated"]
        for name, kept in self._kept.items():
            if name in common["kept"]:  # a checkpoint of an older version has fewer
                kept.load(common["kept"][name])
        if self.ema is not None:
            self.ema.load(own["ema"])
        if common["hand"] is not None:
            self.hand = Hand.of(own["hand"], common["hand"], self.ranks.rank, self.ranks.world)
        self._saved = self._mark
        return folder

    def begin(self) -> None:
        """Tells where it goes on from, and what a person should know of the models."""
        self.report({}, activity="loading")
        for note in self.roles.notes:
            self.event("ModelNote", note)

    def done(self, hand: Hand, tokens: int) -> None:
        """The iteration in hand is done."""
        self.step, self.hand, self.tokens = hand.step, None, self.tokens + tokens

    def between(self) -> None:
        """Before each micro-batch, on all ranks: tells that there is progress, and stops if asked to.

        Raises Stopped, after saving.
        """
        self.context.channel.going_on()
        if (stop := self.asked_to_stop()) is not None:
            self.stop(stop)

    def interruptible(self) -> None:
        """While this rank does what others do not: tells of progress. Raises Interrupted if it was asked to stop."""
        self.context.channel.going_on()
        if self.context.channel.stop is not None:
            raise Interrupted

    def after_waiting(self, away: ServiceAway | None) -> None:
        """Where ranks meet that may each have waited for a service: all stop, if one was asked to or gave up.

        Raises Stopped, ServiceAway, after saving.
        """
        if (stop := self.asked_to_stop()) is not None:
            self.stop(stop)
        if self.ranks.sum([float(away is not None)])[0]:
            self.save()
            raise away or Stopped

    def asked_to_stop(self) -> Stop | None:
        """What the ranks do: the strongest wish of any of them, the same answer on all."""
        return self.ranks.agree_to_stop(self.context.channel.stop)

    def stop(self, stop: Stop) -> NoReturn:
        """Saves, unless the wish is to discard, and raises Stopped."""
        if stop == "save":
            self.save()
        raise Stopped

    def save(self, *, anyway: bool = False, must: bool = True) -> None:
        """Seals a checkpoint of how things stand, unless one is there (or nothing has been done that could be lost).

        `anyway`: also where only what guards remember is new. Without `must` it may be left out, where the one before
        is still on its way to the store.
        """
        if ((mark := self._mark) == self._saved and not anyway) or not any(mark[:2]):
            return
        step, part, _ = mark
        self.context.channel.report("saving")
        watch = Stopwatch(self.roles.actor.engine.settle)
        hand = self.hand
        own = {
            "random": random_states(),
            "hand": hand.own() if hand is not None else None,
            "ema": self.ema.state() if self.ema is not None else None,
        }
        common = {
            "step": self.step,
            "tokens": self.tokens,
            "evaluated": self.evaluated,
            "kept": {name: kept.state() for name, kept in self._kept.items()},
            "hand": hand.common() if hand is not None and part else None,
        }
        with watch("save"):
            saved = snapshots.save(
                self.context, self.roles.engines, self.ranks,
                step=step, part=part, own=own, common=common, data=self._data, must=must,
            )  # fmt: skip
        if not saved:
            return
        self._saved = mark
        self.report(watch.metrics())
        if self._curves:
            self._curves.flush()

    def report(self, metrics: dict[str, float], *, activity: str = "training", speed: float | None = None) -> None:
        """Tells rank 0's launcher, and TensorBoard, of the point at the current step."""
        if self.ranks.rank != 0:
            return
        self.context.channel.report(
            activity,  # type: ignore[arg-type]  # one of the protocol's activities
            self.step,
            steps=self.stage.steps,
            tokens=self.tokens,
            tokens_per_second=speed,
            metrics={name: value for name, value in metrics.items() if known(name)},
        )
        if self._curves:
            self._curves.add(self.step, metrics)

    def event(self, type: str, message: str, *, warning: bool = False) -> None:
        """Says something to people, once for all ranks."""
        if self.ranks.rank == 0:
            self.context.channel.event(type, message, level="warning" if warning else "info", step=self.step)

    def diverged(self, what: str) -> Diverged:
        """The failure that ends a run which has gone wrong."""
        step, part, _ = self._saved
        kept = f"the checkpoint of step {step} is kept" if step or part else "no checkpoint was made yet"
        return Diverged(f"{what}; {kept}")

    def hand_over(self) -> list[Output]:
        """The outputs, written by rank 0 from the weights of all: the actor, its average, and the critic."""
        from worker.outputs import save_outputs

        self.report({}, activity="saving")
        outputs = self._output(self.roles.actor, save_outputs, None)
        if self.ema is not None:
            with self.ema.in_place():
                outputs += self._output(self.roles.actor, save_outputs, "ema")
        if self.roles.critic is not None:
            outputs += self._output(self.roles.critic, save_outputs, "critic")
        if self._curves:
            self._curves.close()
        self.ranks.barrier()
        return outputs

    def _output(self, learner: Learner, write: Any, kind: str | None) -> list[Output]:
        with explained(self.context.order.spec, "gathering the whole model"), self.context.channel.working():
            state = learner.engine.gather()
        if state is None:
            return []
        broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
        if broken:
            raise self.diverged(f"after the last step {broken[0]} holds a value that is no number")
        with self.context.channel.working():
            made: list[Output] = write(
                self.context, learner.loaded, state, self.step, kind=kind, base="stage.actor.model"
            )
        return made

    def _open_curves(self, earlier: Path | None) -> Curves | None:
        if not self.stage.tensorboard or self.ranks.rank != 0:
            return None
        before = earlier.parent.parent / "tensorboard" if earlier else None
        return Curves(self.context.folder / "tensorboard", resumed_from=self.step, earlier=before)
