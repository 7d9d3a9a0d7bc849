"""What Kueue says of a Job that waits in its queue. Pure.

For each Job it keeps a Workload, whose conditions tell why it is not admitted
(https://kueue.sigs.k8s.io/docs/concepts/workload/).
"""

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]


def workload_of(workload: Json) -> str | None:
    """The uid of the Job that a Workload stands for."""
    for owner in workload["metadata"].get("ownerReferences") or ():
        if owner["kind"] == "Job":
            return str(owner["uid"])
    return None


def waiting(workloads: Sequence[Json], trouble: str | None, *, young: bool) -> str | None:
    """Kueue's own words for why a Job waits, or lost its place; None: none are to be expected of one so `young`."""
    for workload in workloads:
        conditions = {c["type"]: c for c in (workload.get("status") or {}).get("conditions") or ()}
        evicted, reserved = conditions.get("Evicted"), conditions.get("QuotaReserved")
        if evicted is not None and evicted["status"] == "True":
            return str(evicted.get("message") or evicted.get("reason") or "")
        if reserved is not None and reserved["status"] == "False":
            return str(reserved.get("message") or reserved.get("reason") or "")
    if young:
        return None
    if workloads:
        return ""
    if trouble is not None:
        return f"what Kueue says of it cannot be read: {trouble}"
    # A queue that does not exist it would tell itself.
    return "Kueue has not seen it yet: is it running, and is there a priority class of the name that the job gives?"
