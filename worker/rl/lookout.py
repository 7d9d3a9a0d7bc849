"""Doing what the guards say: an event, a pause, or the end."""

from typing import Any

from worker.contract.guards import Guards
from worker.errors import PausedByGuard
from worker.rl.course import Course
from worker.rl.guards import HeldOut, Observed, Watch
from worker.rl.roles import Roles


class Lookout:
    """Watches the iterations of one rank. All ranks see the same, and do the same."""

    def __init__(self, guards: Guards, roles: Roles):
        self._watch = Watch(guards, roles.actor.precision)
        self._unreached = (
            {name: engine.watch_gradients() for name, engine in roles.engines.items()}
            if guards.gradient is not None
            else {}
        )

    def state(self) -> dict[str, Any]:
        """All that goes into a checkpoint."""
        return self._watch.state()

    def load(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        self._watch.load(state)

    def begin(self) -> None:
        """Forgets the gradients that came so far: those of a preflight are of no update."""
        for unreached in self._unreached.values():
            unreached()

    def first_ratio(self, course: Course, step: int, error: float) -> None:
        """Looks at the first update of iteration `step` before it is taken. Raises Diverged, PausedByGuard."""
        self._do(course, step, Observed(ratio_error=error))

    def look(self, course: Course, metrics: dict[str, float]) -> None:
        """Looks at an iteration that is done, by its curves. Raises Diverged, PausedByGuard."""
        missing = [f"{engine}: {name}" for engine, unreached in self._unreached.items() for name in unreached()]
        seen = Observed(
            kl=metrics[f"{course.kind}/kl"],
            reward=metrics[f"{course.kind}/reward"],
            length=metrics[f"{course.kind}/length"],
            cut=1 - metrics[f"{course.kind}/ended"],
            entropy=metrics[f"{course.kind}/entropy"],
            without_gradient=missing if self._unreached else None,
        )
        self._do(course, course.step, seen)

    def held_out(self, course: Course, found: HeldOut) -> None:
        """Looks at an evaluation. Raises Diverged, PausedByGuard."""
        self._do(course, course.step, Observed(held_out=found))

    def _do(self, course: Course, step: int, seen: Observed) -> None:
        tripped = self._watch.look(step, seen)
        for one in tripped:
            course.event(one.event, one.message, warning=True)
        for one in tripped:
            if one.then == "stop":
                raise course.diverged(f"step {step}: {one.message}")
        for one in tripped:
            if one.then == "pause":
                course.save(anyway=course.hand is not None)
                raise PausedByGuard(f"step {step}: {one.message}")
