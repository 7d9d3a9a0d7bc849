"""Projects with namespaces of their own, on a real cluster: keys, Jobs and pods stay apart."""

from collections.abc import Callable, Iterator

import pytest
import yaml

from client import Client, Problem
from tests.cluster.cluster import Cluster
from tests.e2e.plane import wait_until
from tests.kubernetes.namespace import Namespace, create, remove
from tests.kubernetes.plane import Plane, operator_kubeconfig, rehearsal, running
from tests.kubernetes.replicas import KEY

OPERATOR = "rlhf-operator"


@pytest.fixture(scope="module")
def team(cluster: Cluster, module_namespace: Namespace) -> Iterator[Namespace]:
    """Another namespace on the same store."""
    made = create(cluster, module_namespace.store)
    yield made
    remove(cluster, made.name)


@pytest.fixture(scope="module")
def both(
    cluster: Cluster,
    module_namespace: Namespace,
    team: Namespace,
    postgres: Callable[[], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Plane]:
    """A control plane with keys, whose operator has its role in two namespaces."""
    folder = tmp_path_factory.mktemp("both")
    account = operator_kubeconfig(cluster, module_namespace, folder)
    (folder / "team").mkdir()
    operator_kubeconfig(cluster, team, folder / "team")
    of_first = {"kind": "ServiceAccount", "name": OPERATOR, "namespace": module_namespace.name}
    binding = {"subjects": [of_first]}
    cluster.kubectl("-n", team.name, "patch", "rolebinding", OPERATOR, "--type=merge", "-p", yaml.safe_dump(binding))
    (folder / "admin-key").write_text(KEY)
    settings = {"AUTH": "keys", "ADMIN_KEY_FILE": str(folder / "admin-key"), "NAMESPACES": team.name}
    with running(folder, cluster, module_namespace, postgres, account, **settings) as plane:
        plane.client = Client(plane.url, key=KEY)
        plane.client.projects.create("team", namespace=team.name)
        yield plane


def of_project(plane: Plane, project: str) -> Client:
    """A client with an editor's key of the project."""
    return Client(plane.url, key=plane.client.keys.create("an-editor", project=project).key)


def jobs_in(cluster: Cluster, namespace: Namespace) -> list[str]:
    """The names of the Jobs there."""
    return sorted(cluster.kubectl("-n", namespace.name, "get", "jobs", "-o", "name").split())


def comes_to(client: Client, job: str, phase: str) -> None:
    """Returns once the job is in this phase."""
    wait_until(lambda: client.jobs.get(job).phase == phase, seconds=120, what=f"{phase} of {job}")


def test_a_projects_jobs_run_in_its_namespace_and_nobody_elses_sees_them(
    cluster: Cluster, both: Plane, module_namespace: Namespace, team: Namespace
) -> None:
    ours, theirs = of_project(both, "team"), of_project(both, "default")
    one, other = ours.jobs.create(rehearsal(10_000)).id, theirs.jobs.create(rehearsal(10_000)).id
    for client, job in ((ours, one), (theirs, other)):
        comes_to(client, job, "running")
    assert jobs_in(cluster, team) == [f"job.batch/{one}-a1"]
    assert jobs_in(cluster, module_namespace) == [f"job.batch/{other}-a1"]
    assert ours.jobs.attempts(one)[0].object_name == f"{team.name}/{one}-a1"
    with pytest.raises(Problem) as refused:
        theirs.jobs.get(one)
    assert refused.value.status == 404

    # Who leads next finds both again, and ends them.
    both.operator.kill()
    both.operator.start()
    for client, job in ((ours, one), (theirs, other)):
        client.jobs.cancel(job)
        comes_to(client, job, "cancelled")
    wait_until(lambda: jobs_in(cluster, team) == [] == jobs_in(cluster, module_namespace), what="the end of both")


def test_a_namespace_that_refuses_the_operator_holds_up_no_other(
    cluster: Cluster, both: Plane, team: Namespace
) -> None:
    theirs = of_project(both, "default")
    cluster.kubectl("-n", team.name, "delete", "rolebinding", OPERATOR)
    both.operator.kill()
    both.operator.start()
    ours = of_project(both, "team")
    one, other = ours.jobs.create(rehearsal(4)).id, theirs.jobs.create(rehearsal(4)).id
    comes_to(theirs, other, "succeeded")
    assert ours.jobs.get(one).phase == "starting"
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": OPERATOR},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": OPERATOR},
        "subjects": [{"kind": "ServiceAccount", "name": OPERATOR, "namespace": both.namespace.name}],
    }  # fmt: skip
    cluster.kubectl("-n", team.name, "apply", "-f", "-", input=yaml.safe_dump(binding))
    comes_to(ours, one, "succeeded")
