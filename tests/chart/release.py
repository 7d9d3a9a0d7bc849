"""A release of the chart on the cluster, for tests: its namespace, its volumes, and Helm's commands on it."""

import base64
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client import Client
from tests.chart.rendering import CHART
from tests.cluster.build import program
from tests.kubernetes.fixtures import AnyCluster
from tests.kubernetes.namespace import Namespace

NAME = "rlhf"
PREVIOUS = Path(__file__).parent / "rlhf-operator-0.1.0.tgz"
"""The chart as it was released before this one: `helm package` of it."""


@dataclass
class Release:
    """What `helm install` makes in a namespace of its own, for jobs in another."""

    cluster: AnyCluster
    namespace: str
    jobs: Namespace
    values: dict[str, Any] = field(repr=False)

    def command(self, *arguments: str) -> list[str]:
        """Helm's command on this release."""
        ours = ["--namespace", self.namespace, "--kubeconfig", str(self.cluster.kubeconfig)]
        return [str(program("helm")), *arguments, *ours]

    def helm(self, *arguments: str, chart: bool = False) -> str:
        """Run Helm on this release, and give what it printed."""
        command = [*self.command(*arguments), *(["--values", "-"] if chart else [])]
        done = subprocess.run(
            command, input=json.dumps(self.values), capture_output=True, text=True, check=False, timeout=400
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.story()}"
        return done.stdout

    def install(self, chart: Path = CHART) -> str:
        """`helm install`, until all is ready; gives the notes."""
        return self.helm("install", NAME, str(chart), "--wait", "--timeout", "4m", chart=True)

    def upgrade(self) -> None:
        """`helm upgrade` to the chart of this repository, with the same values."""
        self.helm("upgrade", NAME, str(CHART), "--wait", "--timeout", "4m", chart=True)

    def client(self) -> Client:
        """A client with the key that the release's Secret holds, by the Service."""
        return admin(self.cluster, self.namespace)

    def url(self) -> str:
        """Of the Service."""
        return url(self.cluster, self.namespace)

    def kubectl(self, *arguments: str) -> str:
        """kubectl, in the release's namespace."""
        return self.cluster.kubectl("-n", self.namespace, *arguments)

    def story(self) -> str:
        """For a person who must find out."""
        told = [self.kubectl("get", "pods,pvc,jobs", "-o", "wide"), self.kubectl("get", "events")]
        for pod in self.kubectl("get", "pods", "-o", "name").split():
            told.append(pod + "\n" + self.kubectl("logs", pod, "--all-containers", "--tail=20", "--ignore-errors"))
        return "\n".join(told)[-12000:]


@contextmanager
def release(
    cluster: AnyCluster, jobs: Namespace, image: str, claims: dict[str, Path], **values: Any
) -> Iterator[Release]:
    """A release that is not installed yet; nothing of it is left at the end. `claims`: the folders of its volumes."""
    namespace = f"{jobs.name}-system"
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    made: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": restricted}},
        *(volume(namespace, claim, folder) for claim, folder in claims.items()),
    ]
    repository, _, tag = image.rpartition(":")
    given = {
        "image": {"repository": repository, "tag": tag},
        "store": {"volume": {"hostPath": {"path": str(jobs.store), "type": "Directory"}}},
        "jobs": {"namespace": jobs.name, "createNamespace": False},
        "worker": worker(jobs),
        "settings": {"BACK_OFF": 0.5},
        **values,
    }
    cluster.kubectl("create", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": made}))
    try:
        yield Release(cluster, namespace, jobs, given)
    finally:
        cluster.http.delete(f"/api/v1/namespaces/{namespace}")
        for name in (
            *(f"{namespace}-{claim}" for claim in claims),
            f"{namespace}-rlhf-store",
            f"{jobs.name}-rlhf-store",
        ):
            cluster.http.delete(f"/api/v1/persistentvolumes/{name}")


def admin(cluster: AnyCluster, namespace: str) -> Client:
    """A client with the admin's key of an installation."""
    secret = json.loads(cluster.kubectl("-n", namespace, "get", "secret", f"{NAME}-admin-key", "-o", "json"))
    return Client(url(cluster, namespace), key=base64.b64decode(secret["data"]["key"]).decode(), patience=60)


def url(cluster: AnyCluster, namespace: str) -> str:
    """Where an installation's API is reached from this machine."""
    address = cluster.kubectl("-n", namespace, "get", "service", NAME, "-o", "jsonpath={.spec.clusterIP}")
    return f"http://{address}"


def worker(jobs: Namespace) -> dict[str, Any]:
    """The chart's `worker`, for pods that run this machine's Python."""
    repository, _, tag = jobs.pod_additions["image"].rpartition(":")
    parts = ("command", "env", "volumes", "volumeMounts")
    return {"image": {"repository": repository, "tag": tag}} | {part: jobs.pod_additions[part] for part in parts}


def volume(namespace: str, claim: str, folder: Path) -> dict[str, Any]:
    """A volume for a claim: there is no provisioner on the cluster."""
    return {
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"{namespace}-{claim}"},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"},
            "claimRef": {"namespace": namespace, "name": claim},
            "hostPath": {"path": str(folder), "type": "Directory"},
            "persistentVolumeReclaimPolicy": "Retain",
        },
    }  # fmt: skip
