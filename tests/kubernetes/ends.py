"""What a job came to, to be compared with an undisturbed one's; and which Jobs were ever made for it."""

import contextlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.kubernetes.fixtures import AnyCluster
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
    """Every Job that came to be in a namespace, however short its life."""

    uids: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def of(self, job: str) -> dict[str, int]:
        """How many Jobs were ever made under each name of an attempt of the job."""
        return {name: len(uids) for name, uids in sorted(self.uids.items()) if name.startswith(f"{job}-a")}

    def see(self, item: dict[str, Any]) -> None:
        """Takes in a Job, as often as it comes."""
        self.uids[item["metadata"]["name"]].add(item["metadata"]["uid"])


@contextmanager
def births(cluster: AnyCluster, namespace: str) -> Iterator[Births]:
    """Watches the API server itself, through no proxy of ours, for the length of a `with`."""
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    found, over = Births(), threading.Event()

    def listed() -> str:
        answer = cluster.http.get(path).raise_for_status().json()
        for item in answer["items"]:
            found.see(item)
        return str(answer["metadata"]["resourceVersion"])

    def watch(version: str) -> str:
        asked = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": "300"}
        # Nothing for a second: it is asked again from there, so that the end is seen soon.
        limit = httpx.Timeout(5, read=1)
        with (
            contextlib.suppress(httpx.ReadTimeout),
            cluster.http.stream("GET", path, params=asked, timeout=limit) as answer,
        ):
            for line in answer.raise_for_status().iter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return listed()
                if event["type"] != "BOOKMARK":
                    found.see(event["object"])
                version = event["object"]["metadata"]["resourceVersion"]
        return version

    def follow(version: str) -> None:
        while not over.is_set():
            try:
                version = watch(version)
            except httpx.HTTPError:
                over.wait(0.1)  # it is away: from the same place again

    thread = threading.Thread(target=follow, args=(listed(),), name="births", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
