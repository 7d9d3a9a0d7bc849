"""An operator with many jobs at rest: `python -m benchmarks.kubernetes_rest [--jobs 1000] [--seconds 30]`.

Active jobs whose Jobs wait, suspended, in a queue that admits none. Measures the operator's share of a core and its
calls to the API server, with a tenth of the jobs and with all; and how long a new operator takes, from its start, until
it has found all again and done what was asked for meanwhile. Prints, asserts nothing.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil

from benchmarks.on_kubernetes import control_plane
from tests.cluster.credentials import Credentials
from tests.kubernetes.faulty import FaultyApiServer
from tests.kubernetes.plane import Plane, rehearsal

SPEC = rehearsal(5, queue={"kueue": "nobody-admits-it"})


def post(plane: Plane, count: int) -> list[str]:
    """Posts jobs, and returns once all have their Jobs."""
    path = f"/apis/batch/v1/namespaces/{plane.namespace.name}/jobs"
    with httpx.Client(base_url=plane.url) as http, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: http.post("/v1/jobs", json=SPEC).raise_for_status().json(), range(count)))
    ids = [answer["id"] for answer in answers]
    wanted = {f"{id}-a1" for id in ids}
    deadline = time.monotonic() + 600
    while True:
        there = {job["metadata"]["name"] for job in plane.cluster.http.get(path).json()["items"]}
        if wanted <= there:
            return ids
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(wanted - there)} Jobs did not come")
        time.sleep(0.5)


def at_rest(plane: Plane, proxy: FaultyApiServer, seconds: float) -> tuple[float, int]:
    """The operator's share of a core over a while in which nothing happens, and the calls that it makes."""
    assert plane.operator.process is not None
    process = psutil.Process(plane.operator.process.pid)
    # What the creations left to do is done once the shares of two looks agree.
    last = -1.0
    for _ in range(30):
        share = process.cpu_percent(2.0)
        if abs(share - last) < 3.0:
            break
        last = share
    before, calls = process.cpu_times(), proxy.count()
    time.sleep(seconds)
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return used / seconds, proxy.count() - calls


def restarted(plane: Plane, job: str) -> float:
    """Seconds from a new operator's start until a job that was cancelled meanwhile is."""
    plane.operator.stop()
    plane.client.jobs.cancel(job)
    began = time.monotonic()
    plane.operator.start()
    while plane.client.jobs.get(job).phase != "cancelled":
        if time.monotonic() - began > 120:
            raise TimeoutError("the cancelled job was not found again")
        time.sleep(0.05)
    return time.monotonic() - began


def measure(plane: Plane, proxy: FaultyApiServer, jobs: int, seconds: float) -> None:
    """Measures with a tenth of the jobs and with all, and prints."""
    ids: list[str] = []
    for count in (jobs // 10, jobs):
        ids += post(plane, count - len(ids))
        share, calls = at_rest(plane, proxy, seconds)
        print(f"{count} jobs at rest: {share:.2f} cores, {calls} calls in {seconds:g} s", flush=True)
    again = restarted(plane, ids[-1])
    print(f"a new operator has found all again, and cancelled one, {again:.1f} s after its start")


def main() -> None:
    """Measures on the cluster that is up, or on one of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30.0)
    given = parser.parse_args()
    with ExitStack() as stack:
        proxies: list[FaultyApiServer] = []

        def through(account: Path) -> Path:
            proxies.append(stack.enter_context(FaultyApiServer(Credentials.of(account))))
            return proxies[0].write_kubeconfig(account.with_name("proxy.conf"))

        plane = stack.enter_context(control_plane(through))
        measure(plane, proxies[0], given.jobs, given.seconds)


if __name__ == "__main__":
    main()
