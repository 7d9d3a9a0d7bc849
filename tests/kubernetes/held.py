"""A job that is kept in the midst of its work, however slow the machine is: its ranks stand still."""

import contextlib
import os
import signal
from dataclasses import dataclass

from tests.e2e.plane import wait_until
from tests.kubernetes.plane import Plane
from tests.kubernetes.processes import launcher, ranks


@dataclass(frozen=True)
class Held:
    """The processes of a job's first attempt.

    Attributes:
        launcher: of its first pod; it runs on, and reports.
        ranks: all that stand still.
    """

    launcher: int
    ranks: tuple[int, ...]

    def go_on(self) -> None:
        """Lets the ranks that are still there go on."""
        for rank in self.ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGCONT)


def hold(plane: Plane, job: str, nodes: int = 1) -> Held:
    """Stops a job's ranks, one a node, as soon as it has made a checkpoint."""
    # By the store: a report may be seconds late.
    made = f"jobs/{job}/a1/checkpoints/step-*"
    wait_until(lambda: any(plane.namespace.store.glob(made)), seconds=120, what=f"a checkpoint of {job}")
    found = ranks(job)
    assert len(found) == nodes, f"{job} is over already: {plane.story(job)}"
    for rank in found.values():
        os.kill(rank, signal.SIGSTOP)
    return Held(launcher(job, 0), tuple(found.values()))
