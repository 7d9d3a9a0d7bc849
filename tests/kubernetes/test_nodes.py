"""A node that stops answering: what ran there is waited for, given up, or declared dead; nothing ever runs twice."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.node import kubelet
from tests.e2e.plane import wait_until
from tests.kubernetes.held import hold
from tests.kubernetes.observer import Observer
from tests.kubernetes.plane import Plane, rehearsal

STEPS = 40
# Seconds that a pod stays on a node that does not answer.
SHORT, LONG = 4, 600
HOSTNAME = "kubernetes.io/hostname"
Curve = list[tuple[int, float]]


def on_a_node(tolerance: int, node: str | None = None) -> dict[str, Any]:
    """A job that stays so long on a node that does not answer; on this node, if one is named."""
    away = ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready")
    pod: dict[str, Any] = {
        "tolerations": [
            {"key": key, "operator": "Exists", "effect": "NoExecute", "toleration_seconds": tolerance} for key in away
        ]
    }
    if node is not None:
        pod["node_selector"] = {HOSTNAME: node}
    return rehearsal(STEPS, resources={"pod": pod})


def node_of(plane: Plane, job: str) -> str:
    [pod] = plane.pods(job)
    return str(pod["spec"]["nodeName"])


def curve(plane: Plane, job: str) -> Curve:
    """The losses that count, by step."""
    return [(point.step, point.value) for point in plane.client.jobs.metrics(job, name="train/loss")]


def is_lost(plane: Plane, job: str, node: str) -> None:
    """Waits until the job is told as lost with its node."""

    def told() -> bool:
        found = plane.client.jobs.get(job)
        return (found.phase, found.reason) == ("finishing", "NodeLost") and node in found.message

    try:
        wait_until(told, what=f"the loss of {node} told of {job}")
    except AssertionError:
        print(plane.story(job))
        raise


def check_went_on(plane: Plane, job: str, expected: Curve) -> None:
    """Checks that its second attempt went on from a checkpoint of the first, and ended as if nothing had happened."""
    first, second = plane.client.jobs.attempts(job)
    assert (first.reason, first.fault) == ("NodeLost", "infra"), plane.story(job)
    assert second.resumed_from is not None
    assert second.resumed_from >= 4
    assert curve(plane, job) == expected


def test_a_node_that_stops_answering(plane: Plane) -> None:
    client, cluster = plane.client, plane.cluster
    observer = Observer(plane.namespace.store).start()
    dead = client.jobs.create(on_a_node(SHORT)).id
    plane.comes_to(dead, "running")
    node = node_of(plane, dead)
    patient = client.jobs.create(on_a_node(LONG, node)).id
    lost = client.jobs.create(on_a_node(SHORT, node)).id
    undisturbed = client.jobs.create(rehearsal(STEPS)).id
    jobs = (dead, patient, lost)
    with ThreadPoolExecutor() as pool:
        processes = dict(zip(jobs, pool.map(partial(hold, plane), jobs), strict=True))
    plane.comes_to(undisturbed, "succeeded")
    cluster.freeze(int(node.removeprefix("node")))
    try:
        for job in (dead, lost):
            is_lost(plane, job, node)
            # Its launcher hears that it is over, and ends though the node cannot end it.
            wait_until(lambda job=job: not Path(f"/proc/{processes[job].launcher}").exists(), what=f"the end of {job}")
        client.jobs.confirm_dead(dead, 1)
        plane.comes_to(dead, "succeeded")
        # Nobody confirmed the other: nothing is begun. Nor was it given up that is to stay for longer.
        is_lost(plane, lost, node)
        assert len(client.jobs.attempts(lost)) == 1
        assert "confirm-dead" in " ".join(client.jobs.explain(lost).todo)
        assert "deletionTimestamp" in plane.pods(lost)[0]["metadata"]
        assert client.jobs.get(patient).phase == "running"
    finally:
        cluster.heal()
        processes[patient].go_on()
    for job in (lost, patient):
        plane.comes_to(job, "succeeded")
    expected = curve(plane, undisturbed)
    assert len(client.jobs.attempts(patient)) == 1, plane.story(patient)
    assert curve(plane, patient) == expected
    for job in (dead, lost):
        check_went_on(plane, job, expected)
    plane.is_empty()
    observer.stop()
    assert observer.twice == []
    assert {(dead, 1), (dead, 2), (lost, 1), (lost, 2), (patient, 1)} <= observer.seen


@pytest.mark.soak
def test_a_node_that_is_removed_while_it_does_not_answer(plane: Plane) -> None:
    client, cluster = plane.client, plane.cluster
    job = client.jobs.create(on_a_node(LONG)).id
    hold(plane, job)
    node = node_of(plane, job)
    cluster.freeze(int(node.removeprefix("node")))
    try:
        # Nobody waits for the toleration then: the cluster's own collector takes away what ran there.
        cluster.kubectl("delete", "node", node)
        wait_until(lambda: client.jobs.get(job).attempt == 2, seconds=180, what="the second attempt")
        plane.comes_to(job, "running")
        assert node_of(plane, job) != node
    finally:
        cluster.heal()
        # A kubelet enters its node once, when it starts.
        cluster.processes.stop(kubelet(int(node.removeprefix("node"))))
        cluster.processes.again(kubelet(int(node.removeprefix("node"))))
        wait_until(lambda: ready(plane, node), what=f"the return of {node}")
    undisturbed = client.jobs.create(rehearsal(STEPS)).id
    for each in (job, undisturbed):
        plane.comes_to(each, "succeeded")
    check_went_on(plane, job, curve(plane, undisturbed))
    plane.is_empty()


def ready(plane: Plane, node: str) -> bool:
    """Whether the node is there, and Ready."""
    answer = plane.cluster.http.get(f"/api/v1/nodes/{node}")
    conditions = answer.json()["status"].get("conditions", ()) if answer.status_code == 200 else ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
