"""From the answer to the Job: `python -m benchmarks.kubernetes_burst [--jobs 200] [--rounds 5]`.

On a real API server: a burst of POSTs to the control plane, each timed from its 201 (and from the POST) until a watch
sees its Job, and the same Jobs created by bare calls, each timed from the call until the same watch sees it. A and B
alternate, round by round. The Jobs are suspended, so that no pod takes part. Prints, asserts nothing.
"""

import argparse
import json
import statistics
import threading
import time
from typing import Any

import httpx

from benchmarks.on_kubernetes import control_plane
from tests.cluster.credentials import Credentials
from tests.kubernetes.plane import Plane, rehearsal

SPEC = rehearsal(5, queue={"kueue": "nobody-admits-it"})


class Watch:
    """Sees Jobs, and when."""

    def __init__(self, credentials: Credentials, namespace: str) -> None:
        self.seen: dict[str, float] = {}
        self._path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self._http = credentials.client()
        version = self._http.get(self._path).json()["metadata"]["resourceVersion"]
        self._query = {"watch": "true", "resourceVersion": version}
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        with self._http.stream("GET", self._path, params=self._query, timeout=None) as answer:
            for line in answer.iter_lines():
                now = time.perf_counter()
                event = json.loads(line)
                if event["type"] == "ADDED":
                    self.seen[event["object"]["metadata"]["name"]] = now

    def wait(self, names: list[str]) -> None:
        """Returns once all were seen."""
        deadline = time.monotonic() + 120
        while any(name not in self.seen for name in names):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{sum(name not in self.seen for name in names)} Jobs did not come")
            time.sleep(0.01)


def posted(plane: Plane, watch: Watch, count: int) -> tuple[list[float], list[float]]:
    """Seconds from each 201, and from each POST, to the Job."""
    asked, answered, names = [], [], []
    with httpx.Client(base_url=plane.url) as http:
        for _ in range(count):
            asked.append(time.perf_counter())
            answer = http.post("/v1/jobs", json=SPEC)
            answered.append(time.perf_counter())
            names.append(f"{answer.raise_for_status().json()['id']}-a1")
    watch.wait(names)
    seen = [watch.seen[name] for name in names]
    return (
        [s - a for s, a in zip(seen, answered, strict=True)],
        [s - a for s, a in zip(seen, asked, strict=True)],
    )


def bare(http: httpx.Client, path: str, like: dict[str, Any], watch: Watch, count: int, number: int) -> list[float]:
    """Seconds from each call to the Job."""
    asked, names = [], []
    for index in range(count):
        name = f"bare-{number}-{index}"
        made = {**like, "metadata": {"name": name, "labels": {"bare": "true"}}}
        asked.append(time.perf_counter())
        http.post(path, json=made).raise_for_status()
        names.append(name)
    watch.wait(names)
    return [watch.seen[name] - began for name, began in zip(names, asked, strict=True)]


def percentiles(values: list[float]) -> tuple[float, float]:
    """p50 and p95, in milliseconds."""
    ordered = sorted(values)
    return 1000 * statistics.median(ordered), 1000 * ordered[max(0, round(0.95 * len(ordered)) - 1)]


def measure(plane: Plane, jobs: int, rounds: int) -> None:
    """Alternates both, and prints each round and the medians."""
    cluster, namespace = plane.cluster, plane.namespace.name
    watch = Watch(Credentials.of(cluster.kubeconfig), namespace)
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    posted(plane, watch, 5)
    found = cluster.http.get(path).json()["items"][0]
    spec = {key: value for key, value in found["spec"].items() if key not in ("selector", "manualSelector")}
    spec["template"]["metadata"] = {"labels": {"bare": "true"}}
    like = {"apiVersion": "batch/v1", "kind": "Job", "spec": spec}
    ratios = []
    for number in range(rounds):
        ours, whole = posted(plane, watch, jobs)
        for job in list(plane.client.jobs.all(phase="starting")):
            if job.phase == "starting":
                plane.client.jobs.cancel(job.id)
        plane.is_empty(600)
        theirs = bare(cluster.http, path, like, watch, jobs, number)
        cluster.http.delete(path, params={"labelSelector": "bare=true"}).raise_for_status()
        (a50, a95), (b50, b95), (w50, w95) = percentiles(ours), percentiles(theirs), percentiles(whole)
        ratios.append((a50 / b50, a95 / b95))
        print(
            f"round {number + 1}: from the 201 p50 {a50:.0f} ms, p95 {a95:.0f} ms; bare p50 {b50:.0f} ms, "
            f"p95 {b95:.0f} ms; {a50 / b50:.2f} and {a95 / b95:.2f} times; "
            f"from the POST p50 {w50:.0f} ms, p95 {w95:.0f} ms",
            flush=True,
        )
    for index, name in enumerate(("p50", "p95")):
        each = [ratio[index] for ratio in ratios]
        print(f"{name}: {statistics.median(each):.2f} times ({min(each):.2f} to {max(each):.2f}), {jobs} jobs a burst")


def main() -> None:
    """Measures on the cluster that is up, or on one of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with control_plane() as plane:
        measure(plane, given.jobs, given.rounds)


if __name__ == "__main__":
    main()
