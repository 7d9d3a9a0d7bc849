"""The port to whatever runs attempts: local processes, or Kubernetes Jobs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from api.domain.job import Reason
from api.domain.observation import Observation
from worker.contract.order import Input, Order
from worker.contract.spec import JobSpec


class ClusterError(Exception):
    """A call that failed for a reason that a later try may not meet."""


class CannotStart(ClusterError):
    """An attempt that can never start, with its reason and a sentence."""

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

    def order(self, job: str, attempt: int, spec: JobSpec, inputs: Mapping[str, Input]) -> Order:
        """The attempt's order, with the places that this cluster gives its files."""

    async def ensure(self, name: str, order: Order, token: str) -> str:
        """Creates the attempt's objects unless they are there. Gives their UID. Raises CannotStart, ClusterError."""

    async def observe(self, name: str) -> Observation:
        """What is known of the attempt. Raises ClusterError when nobody answers."""

    async def stop(self, name: str, grace: float) -> None:
        """Asks the attempt to end; after `grace` seconds (from the first call) kills it. Returns at once."""

    async def logs(self, name: str) -> dict[int, LogEnd]:
        """The last 1 MiB of each rank's log, by rank."""

    async def remove(self, name: str) -> None:
        """Removes all objects of an attempt that is over. Raises ClusterError if it still lives."""

    async def names(self) -> set[str]:
        """The names of all attempts of ours that have objects."""
