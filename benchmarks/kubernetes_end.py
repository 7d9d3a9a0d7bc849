"""From a pod's end to the job's: `python -m benchmarks.kubernetes_end [--jobs 40] [--at-once 4]`.

Short jobs of the real worker in real pods. Each is timed from the moment at which a watch sees its last pod's end until
its phase is final. What lies between: the decision, the logs, the outputs' hashes, two transactions. Prints, asserts
nothing.
"""

import argparse
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.kubernetes_burst import percentiles
from benchmarks.on_kubernetes import control_plane
from tests.cluster.credentials import Credentials
from tests.kubernetes.plane import Plane, rehearsal


class Ends:
    """When the pods of each job were seen to have ended, in seconds since 1970."""

    def __init__(self, credentials: Credentials, namespace: str) -> None:
        self.at: dict[str, float] = {}
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._http = credentials.client()
        version = self._http.get(self._path).json()["metadata"]["resourceVersion"]
        self._query = {"watch": "true", "resourceVersion": version}
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        with self._http.stream("GET", self._path, params=self._query, timeout=None) as answer:
            for line in answer.iter_lines():
                now = time.time()
                pod = json.loads(line)["object"]
                job = pod["metadata"].get("labels", {}).get("rlhf-operator/job")
                if job and pod["status"].get("phase") in ("Succeeded", "Failed"):
                    self.at.setdefault(job, now)


def measure(plane: Plane, jobs: int, at_once: int) -> None:
    """Runs the jobs, and prints the distribution."""
    ends = Ends(Credentials.of(plane.cluster.kubeconfig), plane.namespace.name)

    def one(_: int) -> float:
        job = plane.client.jobs.create(rehearsal(2, stage={"seconds_per_step": 0.01})).id
        ended = plane.comes_to(job, "succeeded", "failed")
        assert ended.phase == "succeeded" and ended.finished_at is not None, ended.message
        return ended.finished_at.timestamp() - ends.at[job]

    with ThreadPoolExecutor(at_once) as pool:
        taken = list(pool.map(one, range(jobs)))
    p50, p95 = percentiles(taken)
    print(
        f"from the last pod's end to the final phase: p50 {p50:.0f} ms, p95 {p95:.0f} ms, of {jobs}, {at_once} at once"
    )


def main() -> None:
    """Measures on the cluster that is up, or on one of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--at-once", type=int, default=4)
    given = parser.parse_args()
    with control_plane() as plane:
        measure(plane, given.jobs, given.at_once)


if __name__ == "__main__":
    main()
