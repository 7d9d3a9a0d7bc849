"""What a cluster says of an attempt, as a plain value."""

from dataclasses import dataclass
from datetime import datetime

from worker.contract.protocol import Termination


@dataclass(frozen=True, slots=True)
class Observation:
    """What the cluster says of one attempt, now.

    An answer that did not come is no Observation: `Cluster.observe` raises ClusterError.
    """

    exists: bool
    """Its objects are there (on one machine: its process was started once)."""
    alive: bool = False
    """A process of it lives, or may still be started."""
    orphaned: bool = False
    """It lives, but nothing leads it any more (on one machine: ranks whose launcher is dead), or it was taken its place
    away; `reason` says which, where it is not Killed."""
    failing: bool = False
    """A part of it failed, and the rest should end too; what was the cause shows when all of it is over."""
    suspended: bool = False
    """It waits for a queue to admit it, and has not begun."""
    running: bool = False
    """Programs of it run already: it does not wait for a place."""
    admitted_at: datetime | None = None
    """When a queue admitted it, where one did."""
    holds: str | None = None
    """What keeps it from starting, or from ending (ImagePull, Unschedulable, NodeLost, …)."""
    held: str = ""
    """The same in the cluster's own words."""
    exit_code: int | None = None
    """Of the first process that failed, or 0; None while it lives, or where nobody knows."""
    termination: Termination | None = None
    """The worker's last words, if it had time for them."""
    reason: str | None = None
    """What the cluster itself calls the end (Killed, NodeLost, …); None where the exit code says it all."""
    message: str = ""
    uid: str | None = None
    image: str | None = None
    """The image that its container runs, by its digest, where the cluster tells."""
    ended_at: datetime | None = None
    """When it ended, where the cluster knows."""
