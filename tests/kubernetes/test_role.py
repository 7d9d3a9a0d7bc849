"""The operator's role: all that it does is in it, and all that is in it is done."""

from collections.abc import Callable
from pathlib import Path

import yaml

from tests.e2e.plane import wait_until
from tests.kubernetes.fixtures import AnyCluster
from tests.kubernetes.ground import ground
from tests.kubernetes.namespace import Namespace
from tests.kubernetes.plane import ROLE, rehearsal

Right = tuple[str, str, str]
FOREVER = 10_000


def given() -> set[Right]:
    """The rights of the role that is shipped: group, resource, verb."""
    return {
        (group, resource, verb)
        for rule in yaml.safe_load(ROLE.read_text())["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_role_has_what_the_operator_uses_and_no_more(
    cluster: AnyCluster, module_namespace: Namespace, postgres: Callable[[], str], tmp_path: Path
) -> None:
    # The proxy has the role, so that the API server itself refuses what is not in it.
    with (
        ground(cluster, module_namespace, postgres, tmp_path) as made,
        made.proxy() as proxy,
        made.plane("role", proxy) as plane,
    ):
        jobs = plane.start().client.jobs
        done, stopped, orphaned = (jobs.create(rehearsal(steps)).id for steps in (6, FOREVER, FOREVER))
        for job in (stopped, orphaned):
            plane.comes_to(job, "running")
        # Of one somebody deletes the Job alone, so that all that belongs to it is left.
        path = f"/apis/batch/v1/namespaces/{plane.namespace.name}/jobs/{orphaned}-a1"
        cluster.http.delete(path, params={"propagationPolicy": "Orphan"}).raise_for_status()
        wait_until(lambda: (jobs.get(orphaned).attempt, jobs.get(orphaned).phase) == (2, "running"), what="attempt 2")
        for job in (stopped, orphaned):
            jobs.cancel(job)
            plane.comes_to(job, "cancelled")
        plane.comes_to(done, "succeeded")
        made.is_clear_of(done, stopped, orphaned)
        used = {(request.group, request.resource, request.verb) for request in proxy.requests()}
    # Kueue is asked where a job waits in a queue of it: there, another test is.
    assert used == {right for right in given() if right[0] != "kueue.x-k8s.io"}
