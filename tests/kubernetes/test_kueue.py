"""A job in a queue of the real Kueue: told while it waits, admitted, preempted, and admitted again where it was."""

import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from client.records import Job
from tests.e2e.plane import wait_until
from tests.kubernetes.fixtures import AnyCluster
from tests.kubernetes.held import hold
from tests.kubernetes.namespace import LABEL, Namespace
from tests.kubernetes.plane import Plane, rehearsal
from tests.kubernetes.sidelong import Cases

STEPS = 40
FOREVER = 10_000
GRACE = 300
# Of limits.start: long enough for a pod to start in, short enough to be waited for.
START = 20
API = "kueue.x-k8s.io/v1beta1"
Curve = list[tuple[int, float]]
case = Cases()


@pytest.fixture(scope="module")
def urgent(cluster: AnyCluster, module_namespace: Namespace) -> Iterator[str]:
    """A priority that others give way to. What Kueue has of these tests beside the namespace goes in the end."""
    cluster.start_kueue()
    name = f"{module_namespace.name}-urgent"
    meta = {"name": name, "labels": {LABEL: module_namespace.name}}
    made = {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": meta, "value": 100}
    cluster.kubectl("create", "-f", "-", input=json.dumps(made))
    yield name
    of_ours = ("-l", f"{LABEL}={module_namespace.name}", "--wait=false")
    cluster.kubectl("delete", "clusterqueues,workloadpriorityclasses", *of_ours)


def queue_of_one(plane: Plane) -> str:
    """Makes a queue with room for one job, in which a higher priority takes a lower one's place, and gives its name."""
    name = f"{plane.namespace.name}-{secrets.token_hex(4)}"
    quotas = [{"name": "cpu", "nominalQuota": "200m"}, {"name": "memory", "nominalQuota": "8Gi"}]
    flavors = [{"coveredResources": ["cpu", "memory"], "flavors": [{"name": "any", "resources": quotas}]}]
    objects = [
        {
            "apiVersion": API,
            "kind": "ClusterQueue",
            "metadata": {"name": name, "labels": {LABEL: plane.namespace.name}},
            "spec": {
                "namespaceSelector": {},
                "queueingStrategy": "BestEffortFIFO",
                "preemption": {"withinClusterQueue": "LowerPriority"},
                "flavorFungibility": {"whenCanBorrow": "Borrow", "whenCanPreempt": "TryNextFlavor"},
                "resourceGroups": flavors,
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
    return name


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


def curve(plane: Plane, job: str) -> Curve:
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
    path = f"/apis/{API}/namespaces/{plane.namespace.name}/workloads"
    found = plane.cluster.http.get(path).raise_for_status().json()["items"]
    return [item for item in found if item["metadata"]["name"].startswith(f"job-{job}")]


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
def it_waits_gives_way_and_goes_on(plane: Plane, urgent: str) -> str:
    queue = queue_of_one(plane)
    # Two pods: the launcher is asked on both nodes.
    job = plane.client.jobs.create(queued(queue, nodes=2, limits={"start": START})).id
    processes = hold(plane, job, nodes=2)
    other = plane.client.jobs.create(queued(queue, FOREVER, urgent=urgent)).id
    told(plane, job, "Preempted", "reempted to accommodate a workload", "running")
    processes.go_on()
    told(plane, job, "AwaitingAdmission", "insufficient unused quota", "starting")
    plane.comes_to(other, "running")
    first, second, *more = plane.client.jobs.attempts(job)
    assert (more, first.reason, first.fault) == ([], "Preempted", "infra"), plane.story(job)
    assert "reempted to accommodate a workload" in first.message, first.message
    assert pods_made(plane, job, 1) == 2
    # Kueue can never begin that attempt once more.
    assert [name for name in plane.objects("jobs") if job in name] == [f"job.batch/{job}-a2"]
    wait_until(
        lambda: datetime.now(UTC) > second.created_at + timedelta(seconds=START + 1), what="more than limits.start"
    )
    assert suspended(plane, job, 2)
    plane.client.jobs.cancel(other)
    return job


@case
def it_is_admitted_again_while_it_still_saves(plane: Plane, urgent: str) -> str:
    queue = queue_of_one(plane)
    job = plane.client.jobs.create(queued(queue)).id
    # It cannot save for now.
    processes = hold(plane, job)
    other = plane.client.jobs.create(queued(queue, FOREVER, urgent=urgent)).id
    told(plane, job, "Preempted", "reempted to accommodate a workload", "running")
    plane.comes_to(other, "running")
    plane.client.jobs.cancel(other)
    wait_until(lambda: not suspended(plane, job, 1), what="the admission of a Job whose pod still ends")
    [pod] = plane.pods(job)
    assert pod["metadata"]["deletionGracePeriodSeconds"] == GRACE
    assert plane.client.jobs.get(job).phase == "running"
    processes.go_on()
    plane.comes_to(job, "queued", "starting")
    assert pods_made(plane, job, 1) == 1
    return job


@case
def it_is_cancelled_while_it_waits(plane: Plane, urgent: str) -> None:
    queue = queue_of_one(plane)
    other = plane.client.jobs.create(queued(queue, FOREVER)).id
    plane.comes_to(other, "running")
    job = plane.client.jobs.create(queued(queue, FOREVER)).id
    told(plane, job, "AwaitingAdmission", "insufficient unused quota", "starting")
    assert "AwaitingAdmission" in [event.type for event in plane.client.jobs.events(job)]
    assert len(workloads(plane, job)) == 1
    plane.client.jobs.cancel(job)
    plane.comes_to(job, "cancelled")
    wait_until(lambda: not workloads(plane, job), what="the end of what Kueue kept for it")
    assert workloads(plane, other)
    plane.client.jobs.cancel(other)


@case
def there_is_no_such_queue(plane: Plane, urgent: str) -> None:
    job = plane.client.jobs.create(queued("nobody-made-it")).id
    told(plane, job, "AwaitingAdmission", "nobody-made-it", "starting")
    plane.client.jobs.cancel(job)
    plane.comes_to(job, "cancelled")


@case
def there_is_no_such_priority(plane: Plane, urgent: str) -> None:
    queue = queue_of_one(plane)
    job = plane.client.jobs.create(queued(queue, urgent="nobody-made-it")).id
    told(plane, job, "AwaitingAdmission", "is there a priority class of the name that the job gives?", "starting")
    plane.client.jobs.cancel(job)
    plane.comes_to(job, "cancelled")


@pytest.fixture(scope="module")
def undisturbed(plane: Plane, urgent: str) -> Curve:
    """The losses of a job that waits for nobody; the cases have begun with it."""
    case.begin(plane, urgent)
    job = plane.client.jobs.create(rehearsal(STEPS)).id
    plane.comes_to(job, "succeeded")
    return curve(plane, job)


@pytest.mark.parametrize("name", case.names)
def test_in_its_queue(plane: Plane, undisturbed: Curve, name: str) -> None:
    job = case.result(name)
    if job is None:
        return
    ended = plane.comes_to(job, "succeeded")
    first, second = plane.client.jobs.attempts(job)
    assert (ended.attempt, first.reason, first.fault) == (2, "Preempted", "infra"), plane.story(job)
    # It saved when it was asked to: no step was made twice.
    assert second.resumed_from == first.progress.step >= 4
    assert len(plane.client.jobs.metrics(job, name="train/loss", superseded=True)) == STEPS
    assert curve(plane, job) == undisturbed


def test_nothing_is_left_of_any_of_them(plane: Plane, undisturbed: Curve) -> None:
    plane.is_empty()
    wait_until(lambda: not workloads(plane, "job"), what="the end of all that Kueue kept")
