"""What is taken away from a running job: its next attempt goes on from the checkpoint, and ends as it would have."""

import os
import signal
from typing import Any

import pytest

from tests.e2e.plane import wait_until
from tests.kubernetes.plane import Plane, rehearsal
from tests.kubernetes.processes import launcher, ranks
from tests.kubernetes.sidelong import Cases

STEPS = 60
Curve = list[tuple[int, float]]
case = Cases()


def curve(plane: Plane, job: str) -> Curve:
    """The losses that count, by step."""
    return [(point.step, point.value) for point in plane.client.jobs.metrics(job, name="train/loss")]


def begun(plane: Plane, nodes: int = 1, **fields: Any) -> str:
    """A job that has made a checkpoint, and some steps more."""
    job = plane.client.jobs.create(rehearsal(STEPS, resources={"nodes": nodes}, **fields)).id
    plane.reaches_step(job, 6)
    wait_until(lambda: plane.client.jobs.checkpoints(job), what="a checkpoint")
    return job


def path(plane: Plane, kind: str, name: str) -> str:
    group = {"jobs": "apis/batch/v1"}.get(kind, "api/v1")
    return f"/{group}/namespaces/{plane.namespace.name}/{kind}/{name}"


def evict(plane: Plane, job: str, index: int) -> None:
    name = plane.pods(job)[index]["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    plane.cluster.http.post(f"{path(plane, 'pods', name)}/eviction", json=eviction).raise_for_status()


@case
def a_pod_is_evicted(plane: Plane) -> tuple[str, str]:
    job = begun(plane)
    evict(plane, job, 0)
    return job, "Preempted"


@case
def one_pod_of_two_is_evicted(plane: Plane) -> tuple[str, str]:
    job = begun(plane, nodes=2)
    evict(plane, job, 1)
    return job, "Preempted"


@case
def its_launcher_is_killed(plane: Plane) -> tuple[str, str]:
    job = begun(plane)
    os.kill(launcher(job, 0), signal.SIGKILL)
    return job, "Killed"


@case
def the_launcher_of_the_other_pod_is_killed(plane: Plane) -> tuple[str, str]:
    job = begun(plane, nodes=2)
    os.kill(launcher(job, 1), signal.SIGKILL)
    return job, "Killed"


@case
def a_rank_of_the_other_pod_is_killed(plane: Plane) -> tuple[str, str]:
    job = begun(plane, nodes=2)
    os.kill(ranks(job)[1], signal.SIGKILL)
    return job, "Killed"


@case
def a_rank_of_the_other_pod_is_stopped(plane: Plane) -> tuple[str, str]:
    job = begun(plane, nodes=2, limits={"stall": "25s"})
    os.kill(ranks(job)[1], signal.SIGSTOP)
    return job, "Stalled"


@case
def somebody_deletes_the_job_and_its_pods(plane: Plane) -> tuple[str, str]:
    job = begun(plane)
    plane.cluster.http.delete(
        path(plane, "jobs", f"{job}-a1"), params={"propagationPolicy": "Background"}
    ).raise_for_status()
    return job, "Killed"


@case
def somebody_deletes_the_job_without_its_pods(plane: Plane) -> tuple[str, str]:
    job = begun(plane)
    plane.cluster.http.delete(
        path(plane, "jobs", f"{job}-a1"), params={"propagationPolicy": "Orphan"}
    ).raise_for_status()
    return job, "Killed"


@case
def somebody_deletes_a_pod(plane: Plane) -> tuple[str, str]:
    job = begun(plane)
    plane.cluster.http.delete(path(plane, "pods", plane.pods(job)[0]["metadata"]["name"])).raise_for_status()
    return job, "Preempted"


@pytest.fixture(scope="module")
def undisturbed(plane: Plane) -> Curve:
    """The losses of a job that nothing happens to; the cases have begun with it."""
    case.begin(plane)
    job = plane.client.jobs.create(rehearsal(STEPS)).id
    plane.comes_to(job, "succeeded")
    return curve(plane, job)


@pytest.mark.parametrize("name", case.names)
def test_it_ends_as_if_nothing_had_happened_when(plane: Plane, undisturbed: Curve, name: str) -> None:
    job, because = case.result(name)
    ended = plane.comes_to(job, "succeeded")
    attempts = plane.client.jobs.attempts(job)
    assert (ended.attempt, attempts[0].reason, attempts[0].fault) == (2, because, "infra"), plane.story(job)
    assert attempts[1].resumed_from is not None
    assert attempts[1].resumed_from >= 4
    assert curve(plane, job) == undisturbed
    if name == "a_pod_is_evicted":
        # It was asked, and had its grace: no step was made twice.
        assert len(plane.client.jobs.metrics(job, name="train/loss", superseded=True)) == STEPS


def test_nothing_is_left_of_any_of_them(plane: Plane, undisturbed: Curve) -> None:
    plane.is_empty()


def test_a_job_of_the_same_name_that_somebody_else_made_is_left_alone(plane: Plane) -> None:
    # Its first attempt is killed while the operator is away, who then finds the next name taken.
    job = begun(plane)
    plane.operator.freeze()
    try:
        theirs = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": f"{job}-a2"},
            "spec": {"suspend": True, "template": {"spec": plane.namespace.pod_spec("sleep", "1")}},
        }
        made = plane.cluster.http.post(path(plane, "jobs", "").rstrip("/"), json=theirs)
        made.raise_for_status()
        os.kill(launcher(job, 0), signal.SIGKILL)
    finally:
        plane.operator.thaw()
    ended = plane.comes_to(job, "failed")
    assert (ended.reason, ended.fault, ended.attempt) == ("NameConflict", "infra", 2)
    there = plane.cluster.http.get(path(plane, "jobs", f"{job}-a2")).json()
    assert there["metadata"]["uid"] == made.json()["metadata"]["uid"]
    assert "deletionTimestamp" not in there["metadata"]
    plane.is_empty()
    plane.cluster.http.delete(path(plane, "jobs", f"{job}-a2")).raise_for_status()
