"""A release of the chart on the cluster, for tests: its namespace, its volumes, and Helm's commands on it."""

import base64
import json
import os
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
KINDS = "deployments,statefulsets,pods,services,configmaps,secrets,serviceaccounts,roles,rolebindings,jobs," + (
    "networkpolicies,poddisruptionbudgets,persistentvolumeclaims"
)


@dataclass
class Release:
    """What `helm install` makes in a namespace of its own, for jobs in another."""

    cluster: AnyCluster
    namespace: str
    jobs: Namespace
    values: dict[str, Any] = field(repr=False)

    def helm(self, *arguments: str, chart: bool = False) -> str:
        """Run Helm on this release, and give what it printed."""
        command = [str(program("helm")), *arguments, "--namespace", self.namespace, "--kubeconfig"]
        command.append(str(self.cluster.kubeconfig))
        if chart:
            command += ["--values", "-"]
        done = subprocess.run(
            command, input=json.dumps(self.values), env={**os.environ}, capture_output=True, text=True, check=False,
            timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.story()}"
        return done.stdout

    def install(self) -> str:
        """`helm install`, until all is ready; gives the notes."""
        return self.helm("install", NAME, str(CHART), "--wait", "--timeout", "4m", chart=True)

    def upgrade(self, **values: Any) -> None:
        """`helm upgrade` with these values over the ones before."""
        self.values |= values
        self.helm("upgrade", NAME, str(CHART), "--wait", "--timeout", "4m", chart=True)

    def client(self) -> Client:
        """A client with the key that the release's Secret holds, by the Service."""
        secret = json.loads(self.kubectl("get", "secret", f"{NAME}-admin-key", "-o", "json"))
        key = base64.b64decode(secret["data"]["key"]).decode()
        address = self.kubectl("get", "service", NAME, "-o", "jsonpath={.spec.clusterIP}")
        return Client(f"http://{address}", key=key, patience=60)

    def kubectl(self, *arguments: str) -> str:
        """kubectl, in the release's namespace."""
        return self.cluster.kubectl("-n", self.namespace, *arguments)

    def left(self) -> set[str]:
        """What bears the release's name, as `kind/name`; in both namespaces, and of volumes."""
        mine = f"app.kubernetes.io/instance={NAME}"
        found = []
        for namespace in (self.namespace, self.jobs.name):
            found += self.cluster.kubectl("-n", namespace, "get", KINDS, "-l", mine, "-o", "name").split()
        return {*found}

    def story(self) -> str:
        """For a person who must find out."""
        told = [self.kubectl("get", "pods,pvc,jobs", "-o", "wide"), self.kubectl("get", "events")]
        for pod in self.kubectl("get", "pods", "-o", "name").split():
            told.append(pod + "\n" + self.kubectl("logs", pod, "--all-containers", "--tail=20", "--ignore-errors"))
        return "\n".join(told)[-12000:]


@contextmanager
def release(cluster: AnyCluster, jobs: Namespace, image: str, folder: Path, **values: Any) -> Iterator[Release]:
    """A release that is not installed yet; nothing of it is left at the end."""
    namespace = f"{jobs.name}-system"
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    made: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": restricted}},
        # There is no provisioner on the cluster.
        {
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"{namespace}-data"},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"},
                "claimRef": {"namespace": namespace, "name": f"{NAME}-data"},
                "hostPath": {"path": str(folder), "type": "Directory"},
            },
        },
    ]  # fmt: skip
    repository, _, tag = image.rpartition(":")
    workers, _, workers_tag = jobs.pod_additions["image"].rpartition(":")
    parts = ("command", "env", "volumes", "volumeMounts")
    given = {
        "image": {"repository": repository, "tag": tag},
        "store": {"volume": {"hostPath": {"path": str(jobs.store), "type": "Directory"}}},
        "jobs": {"namespace": jobs.name, "createNamespace": False},
        "worker": {"image": {"repository": workers, "tag": workers_tag}}
        | {part: jobs.pod_additions[part] for part in parts},
        "settings": {"BACK_OFF": 0.5},
        **values,
    }
    cluster.kubectl("create", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": made}))
    try:
        yield Release(cluster, namespace, jobs, given)
    finally:
        cluster.http.delete(f"/api/v1/namespaces/{namespace}")
        for volume in (f"{namespace}-data", f"{namespace}-rlhf-store", f"{jobs.name}-rlhf-store"):
            cluster.http.delete(f"/api/v1/persistentvolumes/{volume}")
