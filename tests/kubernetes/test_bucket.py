"""A store in a bucket: pods reach it with the credentials of a Secret, and have a folder of their node to work in."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.e2e.plane import wait_until
from tests.kubernetes.namespace import Namespace
from tests.kubernetes.plane import Plane, operator_kubeconfig, rehearsal, running
from tests.storage.server import S3, serving
from worker.contract import manifest
from worker.storage import ObjectStore


@pytest.fixture
def server(cluster: Cluster, tmp_path: Path) -> Iterator[S3]:
    """A server that pods reach."""
    with serving(tmp_path / "s3.log", cluster.host_address) as server:
        yield server


@pytest.fixture
def plane(
    cluster: Cluster,
    namespace: Namespace,
    postgres: Callable[[], str],
    server: S3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Plane]:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    account = operator_kubeconfig(cluster, namespace, tmp_path)
    given = {"STORE": f"s3://{server.bucket()}/rlhf", "STORE_CLAIM": "", "STORE_SECRET": "rlhf-s3"}
    with running(tmp_path / "plane", cluster, namespace, postgres, account, **given) as made:
        yield made


def test_pods_leave_all_in_the_bucket_and_the_next_one_goes_on_from_there(
    cluster: Cluster, plane: Plane, server: S3, tmp_path: Path
) -> None:
    spec = rehearsal(60, stage={"output": True}, name="little", resources={"nodes": 2})
    job = plane.client.jobs.create(spec).id

    def waits() -> bool:
        return "rlhf-s3" in plane.client.jobs.get(job).message

    # Without the Secret it waits, and says for what.
    wait_until(waits, what="a sentence on the Secret")
    keys = [f"--from-literal={n}={v}" for n, v in server.environment.items() if "KEY" in n]
    cluster.kubectl("-n", plane.namespace.name, "create", "secret", "generic", "rlhf-s3", *keys)
    wait_until(lambda: plane.client.jobs.checkpoints(job), what="a checkpoint", seconds=180)
    shown = cluster.kubectl("-n", plane.namespace.name, "get", "jobs,pods,networkpolicies", "-o", "yaml")
    for pod in plane.pods(job):
        name = pod["metadata"]["name"]
        # The second may be gone by then: the Job ends as soon as one is.
        gone = ("--grace-period=0", "--force", "--ignore-not-found")
        cluster.kubectl("-n", plane.namespace.name, "delete", "pod", name, *gone)
    plane.comes_to(job, "succeeded", seconds=240)
    _, second = plane.client.jobs.attempts(job)
    assert second.resumed_from is not None
    assert second.resumed_from >= 4
    steps = [point.step for point in plane.client.jobs.metrics(job, name="train/loss")]
    assert sorted(steps) == list(range(1, 61))
    model = plane.client.models.find("little")
    assert manifest.verify(plane.client.models.download(model.id, tmp_path / "model")).sha256 == model.sha256
    assert [line.rank for line in plane.client.jobs.logs(job)] == [0, 1]
    plane.is_empty()
    shown += "".join(path.read_text(errors="replace") for path in plane.folder.rglob("*.log"))
    assert server.secret not in shown
    assert server.key not in shown
    plane.client.jobs.delete(job)
    plane.client.models.delete(model.id)
    store = ObjectStore(plane.settings["STORE"])
    wait_until(lambda: not list(store.list()), what="an empty bucket")
