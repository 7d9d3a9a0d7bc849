"""A job in a queue of the real Kueue: told while it waits, admitted, preempted, and admitted again where it was."""

import json
import os
import secrets
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from client.records import Job
from tests.e2e.plane import wait_until
from tests.kubernetes.conftest import AnyCluster
from tests.kubernetes.plane import Plane, rehearsal
from tests.kubernetes.processes import ranks
from tests.kubernetes.sidelong import Cases

STEPS = 24
FOREVER = 10_000
GRACE = 300
# Of limits.start: long enough for a pod to start in, short enough to be waited for.
START = 15
API = "kueue.x-k8s.io/v1beta1"
case = Cases()


@pytest.fixture(scope="module")
def urgent(cluster: AnyCluster) -> Iterator[str]:
    """A priority that others give way to."""
    cluster.start_kueue()
    name = f"urgent-{secrets.token_hex(4)}"
    made = {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": 100}
    cluster.kubectl("create", "-f", "-", input=json.dumps(made))
    yield name
    cluster.kubectl("delete", "workloadpriorityclass", name)


@pytest.fixture(scope="module")
def stories(plane: Plane, urgent: str) -> Iterator[None]:
    """All cases have begun, each in a queue of its own that has room for one job."""
    queues = {name: f"{name.replace('_', '-')[:40]}-{secrets.token_hex(4)}" for name in case.names}
    for queue in queues.values():
        make_queue(plane, queue)
    case.begin(plane, queues, urgent)
    yield
    for queue in queues.values():
        plane.cluster.kubectl("delete", "clusterqueue", queue)


def make_queue(plane: Plane, name: str) -> None:
    """A queue in the namespace, with room for one job, in which a higher priority takes a lower one's place."""
    quotas = [{"name": "cpu", "nominalQuota": "200m"}, {"name": "memory", "nominalQuota": "8Gi"}]
    objects = [
        {
            "apiVersion": API,
            "kind": "ClusterQueue",
            "metadata": {"name": name},
            "spec": {
                "namespaceSelector": {},
                "queueingStrategy": "BestEffortFIFO",
                "preemption": {"withinClusterQueue": "LowerPriority"},
                "flavorFungibility": {"whenCanBorrow": "Borrow", "whenCanPreempt": "TryNextFlavor"},
                "resourceGroups": [
                    {"coveredResources": ["cpu", "memory"], "flavors": [{"name": "any", "resources": quotas}]}
                ],
            },
        },
        {
            "apiVersion": API,
            "kind": "LocalQueue",
            "metadata": {"name": name, "namespace": plane.namespace.name},
            "spec": {"clusterQueue": name},
        },
    ]
    plane.cluster.kubectl("create", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))


def queued(queue: str, steps: int = STEPS, nodes: int = 1, urgent: str | None = None, **fields: Any) -> dict[str, Any]:
    """A job that fills its queue."""
    priority = {} if urgent is None else {"kueue_priority_class": urgent}
    resources = {"nodes": nodes, "cpu": f"{200 // nodes}m"}
    return rehearsal(
        steps,
        resources=resources,
        queue={"kueue": queue, **priority},
        checkpoint={"every_steps": 4, "grace": GRACE},
        **fields,
    )


def curve(plane: Plane, job: str) -> list[tuple[int, float]]:
    """The losses that count, by step."""
    return [(point.step, point.value) for point in plane.client.jobs.metrics(job, name="train/loss")]


def told(plane: Plane, job: str, reason: str, words: str, *phases: str) -> Job:
    """The job, once it says why it waits, in Kueue's own words."""

    def there() -> Job | None:
        found = plane.client.jobs.get(job)
        return found if found.phase in phases and found.reason == reason and words in found.message else None

    try:
        return wait_until(there, what=f"{reason} of {job}, because of {words!r}")
    except AssertionError:
        print(plane.story(job))
        raise


def workloads(plane: Plane, job: str) -> list[dict[str, Any]]:
    """Kueue's objects for the job's attempts."""
    path = f"/apis/{API.replace('/', '/')}/namespaces/{plane.namespace.name}/workloads"
    found = plane.cluster.http.get(path).raise_for_status().json()["items"]
    return [item for item in found if item["metadata"]["name"].startswith(f"job-{job}-a")]


def suspended(plane: Plane, job: str, attempt: int) -> bool:
    """Whether the Job of an attempt is there, and is suspended."""
    path = f"/apis/batch/v1/namespaces/{plane.namespace.name}/jobs/{job}-a{attempt}"
    return bool(plane.cluster.http.get(path).json().get("spec", {}).get("suspend"))


def pods_made(plane: Plane, job: str, attempt: int) -> int:
    """How many pods were ever made for an attempt."""
    selector = f"involvedObject.name={job}-a{attempt},reason=SuccessfulCreate"
    path = f"/api/v1/namespaces/{plane.namespace.name}/events"
    found = plane.cluster.http.get(path, params={"fieldSelector": selector}).raise_for_status().json()["items"]
    return sum(event.get("count") or 1 for event in found)


@case
def it_waits_gives_way_and_goes_on(plane: Plane, queues: dict[str, str], urgent: str) -> str:
    queue = queues["it_waits_gives_way_and_goes_on"]
    job = plane.client.jobs.create(queued(queue, nodes=2, limits={"start": START})).id
    plane.reaches_step(job, 6)
    other = plane.client.jobs.create(queued(queue, FOREVER, urgent=urgent)).id
    told(plane, job, "AwaitingAdmission", "insufficient unused quota", "starting")
    plane.comes_to(other, "running")
    first, second = plane.client.jobs.attempts(job)
    assert (first.reason, first.fault) == ("Preempted", "infra"), plane.story(job)
    assert "reempted to accommodate a workload" in first.message
    assert pods_made(plane, job, 1) == 2
    assert plane.objects("jobs") == [f"job.batch/{job}-a2", f"job.batch/{other}-a1"]
    wait_until(
        lambda: datetime.now(UTC) > second.created_at + timedelta(seconds=START + 1), what="more than limits.start"
    )
    assert plane.client.jobs.get(job).phase == "starting"
    plane.client.jobs.cancel(other)
    plane.comes_to(job, "succeeded")
    return job


@pytest.mark.parametrize("name", case.names)
def test_in_its_queue(plane: Plane, stories: None, name: str) -> None:
    case.result(name)
