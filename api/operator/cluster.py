"""The port to whatever runs attempts: local processes, or Kubernetes Jobs."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from api.domain.job import Reason
from api.domain.observation import Observation
from worker.contract.order import Input, Order
from worker.contract.spec import JobSpec

fence: ContextVar[Callable[[], float]] = ContextVar("fence")
"""Asked at the last moment before something is changed on a cluster for how many seconds this operator may still act;
it raises if it may not. Who was frozen in the midst of a call finds out here."""


class ClusterError(Exception):
    """A call that failed for a reason that a later try may not meet."""


class CannotStart(ClusterError):
    """An attempt that can never start, with its reason and a sentence."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason, self.message = reason, message


class Held(ClusterError):
    """An attempt that cannot start for now, with its reason and a sentence: it is tried again."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass(frozen=True, slots=True)
class LogEnd:
    """The end of a rank's log: what it says from byte `start` on."""

    start: int
    content: bytes


class Cluster(Protocol):
    """Starts, sees and stops attempts. Names follow from job and attempt alone; every call may be repeated."""

    def watch(self, ended: Callable[[str], None]) -> None:
        """Has `ended` called, in any thread, with the name of an attempt that may be over: a hint that may be lost."""

    def order(self, name: str, job: str, attempt: int, spec: JobSpec, inputs: Mapping[str, Input]) -> Order:
        """The attempt's order, with the places that this cluster gives its files. `name`: of its objects."""

    @property
    def trouble(self) -> str | None:
        """Why it is not heard at the moment what happens there; None: it is."""

    async def look_anew(self) -> None:
        """Has what others did up to now be known, before this operator leads. Raises ClusterError."""

    async def ensure(self, name: str, order: Order, token: str, image: str | None = None, project: str = "") -> str:
        """Creates the attempt's objects unless they are there, and gives their UID. Raises CannotStart, Held,
        ClusterError. `image`: what the job's first attempt ran; `project`: its project, whose Secrets it may have."""

    async def observe(self, name: str, uid: str | None = None) -> Observation:
        """What is known of the attempt, whose objects were recorded with `uid` (None: not yet). Raises ClusterError
        when nobody answers."""

    async def stop(self, name: str, grace: float) -> None:
        """Asks the attempt to end; after `grace` seconds (from the first call) kills it. Returns at once."""

    async def logs(self, name: str) -> dict[int, LogEnd]:
        """The last 1 MiB of each rank's log, by rank."""

    async def remove(self, name: str, force: bool = False) -> bool:
        """Removes all objects of an attempt that is over; False: not all are gone yet, call again. `force`: an admin
        says that it is dead, though it cannot be seen. Raises ClusterError if it still lives."""

    async def names(self) -> set[str]:
        """The names of all attempts of ours that have objects."""


def placed(inputs: Mapping[str, Input], store: str) -> dict[str, Input]:
    """The inputs where a worker finds them for which the store is at `store`, a path or the URL of a bucket: a kept
    location is a path in the store."""
    return {
        path: given.model_copy(update={"location": f"{store}/{given.location}"})
        if given.kind in ("file", "model")
        else given
        for path, given in inputs.items()
    }
