"""The control plane's image in a pod: as little as a pod may say under the restricted level, with a read-only root."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.e2e.plane import wait_until
from tests.kubernetes.fixtures import AnyCluster
from tests.kubernetes.namespace import Namespace

T = TypeVar("T")
GRACE = 20
_KEPT = "rlhf-test.example/looked-at"
"""A finalizer: a pod that ended is still there to be asked how."""


@dataclass(frozen=True)
class Pod:
    """A pod of the control plane, with SQLite in an emptyDir."""

    cluster: AnyCluster
    namespace: str
    name: str

    @property
    def path(self) -> str:
        """Of its object, at the API server."""
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"

    def status(self) -> dict[str, Any]:
        """The pod's status, as it is now."""
        return dict(self.cluster.http.get(self.path).raise_for_status().json()["status"])

    def get(self, path: str) -> int:
        """The status code of what the control plane answers, by way of the API server."""
        return self.cluster.http.get(f"{self.path}:8000/proxy{path}").status_code

    def run(self, *command: str) -> str:
        """What a command in the container prints."""
        return self.cluster.kubectl("-n", self.namespace, "exec", self.name, "-c", "control-plane", "--", *command)

    def is_ready(self) -> None:
        """Returns once the kubelet's probe says so."""

        def ready() -> bool:
            status = self.status()
            assert status["phase"] in ("Pending", "Running"), status
            return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))

        self._wait(ready, "a pod that is ready")

    def ends(self) -> dict[str, Any]:
        """Asks for its end, as Kubernetes does with every pod, and gives how the container ended."""
        self.cluster.http.delete(self.path, params={"gracePeriodSeconds": GRACE}).raise_for_status()

        def ended() -> dict[str, Any]:
            (container,) = self.status()["containerStatuses"]
            return dict(container["state"].get("terminated") or {})

        return self._wait(ended, "the end of its container")

    def let_go(self) -> None:
        """Nobody has a question any more: the pod goes."""
        kind = {"content-type": "application/merge-patch+json"}
        self.cluster.http.patch(self.path, json={"metadata": {"finalizers": None}}, headers=kind)
        self.cluster.http.delete(self.path, params={"gracePeriodSeconds": 1})

    def _wait(self, condition: Callable[[], T], what: str) -> T:
        try:
            return wait_until(condition, seconds=90, what=what)
        except AssertionError:
            for container in ("migrate", "control-plane"):
                print(self.cluster.kubectl("-n", self.namespace, "logs", self.name, "-c", container))
            print(self.cluster.kubectl("-n", self.namespace, "describe", "pod", self.name))
            raise


@contextmanager
def pod(cluster: AnyCluster, namespace: Namespace, image: str, name: str, **user: int) -> Iterator[Pod]:
    """A pod of the control plane, after its migrations; `user`: as `securityContext` has it, else the image's own."""
    mounts = [{"name": "data", "mountPath": "/data"}, {"name": "tmp", "mountPath": "/tmp"}]
    container = {
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    probed = {"port": 8000, "scheme": "HTTP"}
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **user},
        "initContainers": [{"name": "migrate", "args": ["migrate"], **container}],
        "containers": [
            {
                "name": "control-plane",
                "readinessProbe": {"httpGet": {"path": "/readyz", **probed}, "periodSeconds": 1},
                "livenessProbe": {"httpGet": {"path": "/livez", **probed}, "initialDelaySeconds": 20},
                **container,
            }
        ],
        "volumes": [{"name": name, "emptyDir": {}} for name in ("data", "tmp")],
    }
    metadata = {"name": name, "namespace": namespace.name, "finalizers": [_KEPT]}
    made = Pod(cluster, namespace.name, name)
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    answer = cluster.http.post(made.path.rpartition("/")[0], json=body)
    assert answer.status_code == 201, answer.text
    try:
        yield made
    finally:
        made.let_go()
