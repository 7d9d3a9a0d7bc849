"""The port to whatever runs attempts: local processes, or Kubernetes Jobs."""

from dataclasses import dataclass
from typing import Protocol

from worker.contract.order import Order
from worker.contract.protocol import Termination


class ClusterError(Exception):
    """A call that failed for a reason that a later try may not meet."""


class CannotStart(ClusterError):
    """An attempt that can never start, with the `Reason`'s word and a sentence."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass(frozen=True, slots=True)
class Observation:
    """What the cluster says of one attempt, now.

    An answer that did not come is no Observation: `observe` raises ClusterError.
    """

    exists: bool
    """Its objects are there (on one machine: its process was started once)."""
    alive: bool = False
    """A process of it lives, or may still be started."""
    exit_code: int | None = None
    """Of the first process that failed, or 0; None while it lives, or where nobody knows."""
    termination: Termination | None = None
    """The worker's last words, if it had time for them."""
    reason: str | None = None
    """What the cluster itself calls the end (Killed, NodeLost, …); None where the exit code says it all."""
    message: str = ""
    uid: str | None = None


class Cluster(Protocol):
    """Starts, sees and stops attempts. Names follow from job and attempt alone; every call may be repeated."""

    async def ensure(self, name: str, order: Order, token: str) -> str:
        """Creates the attempt's objects unless they are there. Gives their UID. Raises CannotStart, ClusterError."""

    async def observe(self, name: str) -> Observation:
        """What is known of the attempt. Raises ClusterError when nobody answers."""

    async def stop(self, name: str, grace: float) -> None:
        """Asks the attempt to end; after `grace` seconds (from the first call) kills it. Returns at once."""

    async def logs(self, name: str) -> dict[int, bytes]:
        """The last 1 MiB of each rank's log, by rank."""

    async def remove(self, name: str) -> None:
        """Removes all objects of an attempt that is over. Raises ClusterError if it still lives."""

    async def names(self) -> set[str]:
        """The names of all attempts of ours that have objects."""
