"""What a job came to, to be compared with an undisturbed one's; and which Jobs were ever made for it."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from tests.kubernetes.conftest import AnyCluster
from tests.kubernetes.plane import Plane


@dataclass(frozen=True)
class End:
    """All that may not depend on what was disturbed meanwhile."""

    phase: str
    reason: str | None
    attempts: tuple[tuple[int, str | None, int | None, int | None], ...]
    """Of each: its number, reason, exit code, and the step that it went on from."""
    losses: tuple[tuple[int, float], ...]
    checkpoints: tuple[tuple[int, int], ...]
    """Of each: its attempt and its step."""


def end_of(plane: Plane, job: str) -> End:
    """What the job came to."""
    jobs, found = plane.client.jobs, plane.client.jobs.get(job)
    return End(
        phase=found.phase,
        reason=found.reason,
        attempts=tuple((a.number, a.reason, a.exit_code, a.resumed_from) for a in jobs.attempts(job)),
        losses=tuple((point.step, point.value) for point in jobs.metrics(job, name="train/loss")),
        checkpoints=tuple(sorted((c.attempt, c.step) for c in jobs.checkpoints(job))),
    )


@dataclass
class Births:
    """Every Job that came to be in a namespace, however short its life, by its name."""

    uids: Counter[str] = field(default_factory=Counter)

    def of(self, job: str) -> dict[str, int]:
        """How many Jobs were ever made under each name of an attempt of the job."""
        return {name: count for name, count in sorted(self.uids.items()) if name.startswith(f"{job}-a")}


@contextmanager
def births(cluster: AnyCluster, namespace: str) -> Iterator[Births]:
    """Watches the API server itself, through no proxy of ours, for the length of a `with`."""
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    found, over = Births(), threading.Event()
    version = cluster.http.get(path).json()["metadata"]["resourceVersion"]

    def watch() -> None:
        nonlocal version
        while not over.is_set():
            asked = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": "300"}
            try:
                with cluster.http.stream("GET", path, params=asked, timeout=httpx.Timeout(5, read=1)) as answer:
                    for line in answer.iter_lines():
                        event = json.loads(line)
                        if event["type"] == "ADDED":
                            found.uids[event["object"]["metadata"]["name"]] += 1
                        version = event["object"]["metadata"]["resourceVersion"]
            except httpx.TransportError:
                # Nothing came for a second, or the API server is away: from the same place again.
                over.wait(0.1)

    thread = threading.Thread(target=watch, name="births", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
