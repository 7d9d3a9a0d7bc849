"""What keeps a job from running is told as it is: in its reason, in an event, in the cluster's own words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.plane import free_port, wait_until
from tests.kubernetes.fixtures import AnyCluster
from tests.kubernetes.namespace import Namespace
from tests.kubernetes.plane import Plane, operator_kubeconfig, rehearsal, running


def held(plane: Plane, job: str, reason: str) -> Any:
    """The job, once it is told what keeps it from starting."""

    def told() -> Any:
        found = plane.client.jobs.get(job)
        return found if found.reason == reason else None

    try:
        found = wait_until(told, what=f"{reason} of {job}")
    except AssertionError:
        print(plane.story(job))
        raise
    assert found.phase == "starting"
    assert reason in [event.type for event in plane.client.jobs.events(job)]
    return found


def test_an_image_that_does_not_exist(plane: Plane) -> None:
    with_image = plane.another(image="localhost/no-such-image:1")
    with with_image as other:
        job = other.client.jobs.create(rehearsal(5, limits={"start": "12s"})).id
        assert "no-such-image" in held(other, job, "ImagePull").message
        ended = other.comes_to(job, "failed")
        assert (ended.reason, ended.fault) == ("ImagePull", "infra")
        assert "limits.start" in ended.message
        assert "no-such-image" in ended.message
        other.is_empty()


def test_a_pod_that_cannot_report(
    cluster: AnyCluster, plane: Plane, postgres: Callable[[], str], tmp_path: Path
) -> None:
    nobody = f"http://{cluster.host_address}:{free_port()}"
    account = plane.kubeconfig
    with running(tmp_path, cluster, plane.namespace, postgres, account, WORKER_URL=nobody) as other:
        job = other.client.jobs.create(rehearsal(5, limits={"start": "12s"}, retry={"max_attempts": 1})).id
        ended = other.comes_to(job, "failed")
        assert "do its pods reach WORKER_URL" in ended.message
        other.is_empty()


def test_a_wrong_command(plane: Plane) -> None:
    with plane.another(command=["/no/such/program"]) as other:
        job = other.client.jobs.create(rehearsal(5)).id
        ended = other.comes_to(job, "failed")
        assert (ended.reason, ended.fault, ended.attempt) == ("WorkerError", "system", 2)
        assert "/no/such/program" in ended.message
        other.is_empty()


def test_a_request_larger_than_any_node(plane: Plane) -> None:
    job = plane.client.jobs.create(rehearsal(5, resources={"cpu": "1000"}, limits={"start": "6s"})).id
    assert "Insufficient cpu" in held(plane, job, "Unschedulable").message
    ended = plane.comes_to(job, "failed")
    assert (ended.reason, ended.fault) == ("Unschedulable", "infra")
    assert "Insufficient cpu" in ended.message
    plane.is_empty()


def test_a_container_that_is_killed_for_its_memory(plane: Plane) -> None:
    job = plane.client.jobs.create(rehearsal(5, resources={"memory": "16Mi"})).id
    ended = plane.comes_to(job, "failed")
    assert (ended.reason, ended.fault, ended.attempt) == ("OutOfMemory", "user", 1)
    assert "resources.memory" in ended.message
    plane.is_empty()


def test_a_quota_that_is_used_up_is_waited_for(plane: Plane) -> None:
    quota = {
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": {"hard": {"pods": "0"}},
    }  # fmt: skip
    kubectl, namespace = plane.cluster.kubectl, plane.namespace.name
    kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(quota))
    try:
        job = plane.client.jobs.create(rehearsal(5)).id
        assert "exceeded quota: small" in held(plane, job, "QuotaWait").message
    finally:
        kubectl("-n", namespace, "delete", "resourcequota", "small")
    # The Job controller tries again, later each time.
    plane.comes_to(job, "succeeded")
    plane.is_empty()


def test_a_namespace_that_is_being_deleted_and_one_that_is_not_there(
    cluster: AnyCluster, namespace: Namespace, plane: Plane, tmp_path: Path
) -> None:
    with plane.another(namespace=namespace, kubeconfig=operator_kubeconfig(cluster, namespace, tmp_path)) as other:
        first = other.client.jobs.create(rehearsal(10_000)).id
        other.comes_to(first, "running")
        cluster.kubectl("delete", "namespace", namespace.name, "--wait=false")
        ended = other.comes_to(first, "failed")
        assert ended.reason in ("NamespaceGone", "Forbidden")
        second = other.client.jobs.create(rehearsal(5)).id
        assert other.comes_to(second, "failed").reason in ("NamespaceGone", "Forbidden")


@pytest.mark.parametrize("missing", [("jobs", "list"), ("pods", "watch")])
def test_what_an_operator_may_not_see(
    cluster: AnyCluster, plane: Plane, tmp_path: Path, missing: tuple[str, str]
) -> None:
    resource, verb = missing
    account = operator_kubeconfig(cluster, plane.namespace, tmp_path, name="blind", without=missing)
    with plane.another(kubeconfig=account) as other:
        job = other.client.jobs.create(rehearsal(10_000)).id
        words = f'cannot {verb} resource "{resource}"'
        wait_until(lambda: words in " ".join(other.client.jobs.explain(job).because), what="an explanation")
        operator_kubeconfig(cluster, plane.namespace, tmp_path, name="blind")
        other.comes_to(job, "running")
        wait_until(lambda: words not in " ".join(other.client.jobs.explain(job).because), what="its end")
        other.client.jobs.cancel(job)
        other.comes_to(job, "cancelled")
        other.is_empty()


def test_a_verb_that_it_needs_only_at_the_end(cluster: AnyCluster, plane: Plane, tmp_path: Path) -> None:
    account = operator_kubeconfig(cluster, plane.namespace, tmp_path, name="stuck", without=("jobs", "delete"))
    with plane.another(kubeconfig=account) as other:
        job = other.client.jobs.create(rehearsal(10_000)).id
        other.comes_to(job, "running")
        operator_kubeconfig(cluster, plane.namespace, tmp_path, name="stuck", without=("pods", "delete"))
        other.client.jobs.cancel(job)
        wait_until(lambda: other.client.jobs.get(job).reason == "Forbidden", what="Forbidden")
        assert 'cannot delete resource "pods"' in other.client.jobs.get(job).message
        operator_kubeconfig(cluster, plane.namespace, tmp_path, name="stuck")
        other.comes_to(job, "cancelled")
        other.is_empty()


@pytest.mark.parametrize("missing", ["jobs", "secrets"])
def test_a_verb_that_the_operator_was_not_given(
    cluster: AnyCluster, plane: Plane, tmp_path: Path, missing: str
) -> None:
    account = operator_kubeconfig(cluster, plane.namespace, tmp_path, name="weak", without=(missing, "create"))
    with plane.another(kubeconfig=account) as other:
        job = other.client.jobs.create(rehearsal(5)).id
        ended = other.comes_to(job, "failed")
        assert (ended.reason, ended.fault) == ("Forbidden", "infra")
        assert f'cannot create resource "{missing}"' in ended.message
        other.is_empty()
