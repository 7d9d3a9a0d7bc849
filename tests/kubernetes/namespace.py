"""A namespace of a test's own, under the restricted level, where pods find this machine's Python and a store."""

import json
import os
import secrets
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster
from tests.cluster.given import GivenCluster
from tests.cluster.machine import ClusterError

REPOSITORY = Path(__file__).parents[2]
USER = 10001
LABEL = "rlhf-test-namespace"


@dataclass(frozen=True)
class Namespace:
    """A namespace, and what a pod needs in it to run the worker.

    Attributes:
        store: a folder of this machine, which `store_claim` brings to the same path in pods; both may write there.
        pod_additions: what an admin adds to every worker's pod: `image`, `command`, `env`, `volumes` and so on. With
            them, `<repository>/.venv/bin/python` runs in a busybox. Volumes without the store: that is the operator's.
    """

    name: str
    store: Path
    store_claim: str
    pod_additions: dict[str, Any] = field(repr=False)

    def pod_spec(self, *command: str, memory: str = "64Mi", **more: Any) -> dict[str, Any]:
        """The spec of a pod that the restricted level admits, with this machine's programs and the store in it.

        `more` goes into the spec as it is; a writable `/tmp` is there.
        """
        additions = self.pod_additions
        store = {"name": "store", "persistentVolumeClaim": {"claimName": self.store_claim}}
        return {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "main",
                    "image": additions["image"],
                    "imagePullPolicy": additions["imagePullPolicy"],
                    "command": list(command),
                    "env": additions["env"],
                    "resources": {"requests": {"memory": memory}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [
                        *additions["volumeMounts"],
                        {"name": "store", "mountPath": str(self.store)},
                        {"name": "tmp", "mountPath": "/tmp"},
                    ],
                }
            ],
            "volumes": [*additions["volumes"], store, {"name": "tmp", "emptyDir": {}}],
            **more,
        }


def create(cluster: Cluster | GivenCluster, store: Path) -> Namespace:
    """Make a namespace with its volumes, and return when pods can be made in it."""
    name = f"t-{secrets.token_hex(4)}"
    share(store)
    volumes, additions = machine(name)
    objects: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": name,
                "labels": {"pod-security.kubernetes.io/enforce": "restricted", LABEL: name},
            },
        },
        *_volume(name, "store", store, "ReadWriteMany"),
        *volumes,
    ]
    cluster.kubectl("create", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    try:
        _wait_for_what_pods_need(cluster, name)
    except BaseException:
        remove(cluster, name)
        raise
    own = {"image": cluster.image, "imagePullPolicy": "IfNotPresent", "runAsUser": USER, "runAsGroup": USER}
    return Namespace(name, store, "store", own | additions)


def machine(namespace: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Volumes with this machine's programs , and what a worker's pod says to run its Python from them."""
    folders = {f"machine-{index}": folder for index, folder in enumerate(machine_folders())}
    objects = [
        made
        for claim, folder in folders.items()
        for made in _volume(namespace, claim, folder.resolve(), "ReadOnlyMany")
    ]
    additions = {
        "command": [str(REPOSITORY / ".venv/bin/python"), "-m", "worker"],
        "env": [{"name": key, "value": value} for key, value in environment().items()],
        "volumes": [
            {"name": claim, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}} for claim in folders
        ],
        "volumeMounts": [
            {"name": claim, "mountPath": str(folder), "readOnly": True} for claim, folder in folders.items()
        ],
    }
    return objects, additions


def remove(cluster: Cluster | GivenCluster, name: str) -> None:
    """Ask for the end of a namespace and all in it, whatever grace its pods were promised; without waiting for it."""
    http = cluster.http
    http.delete(f"/api/v1/namespaces/{name}")
    http.delete(f"/api/v1/namespaces/{name}/pods", params={"gracePeriodSeconds": 1})
    http.delete("/api/v1/persistentvolumes", params={"labelSelector": f"{LABEL}={name}"})


def is_gone(cluster: Cluster | GivenCluster, name: str) -> bool:
    """Whether nothing of it is left."""
    volumes = cluster.http.get("/api/v1/persistentvolumes", params={"labelSelector": f"{LABEL}={name}"})
    return cluster.http.get(f"/api/v1/namespaces/{name}").status_code == 404 and not volumes.json().get("items")


def hurry(cluster: Cluster | GivenCluster, name: str) -> None:
    """Push a namespace on that some seconds after its end was asked for is still there.

    Its controller, having once seen a pod, comes back only when that pod's grace would be over, which is minutes here.
    """
    if cluster.http.get(f"/api/v1/namespaces/{name}/pods").json().get("items"):
        cluster.kill_pods(name)
    else:
        change = {"metadata": {"annotations": {"rlhf-test/pods-gone": secrets.token_hex(4)}}}
        kind = {"content-type": "application/merge-patch+json"}
        cluster.http.patch(f"/api/v1/namespaces/{name}", json=change, headers=kind)


def machine_folders() -> list[Path]:
    """The folders of this machine that its Python needs, as paths in pods: none lies in another.

    Raises:
        ClusterError: other users may not read one of them.
    """
    wanted = [Path("/usr"), Path("/lib"), Path("/lib64"), REPOSITORY, REPOSITORY / ".venv", Path(sys.base_prefix)]
    # The environment's python is a link, through others maybe, to one that lies in an installation's `bin`.
    link = REPOSITORY / ".venv/bin/python"
    while link.is_symlink():
        link = link.parent / link.readlink()
        wanted.append(link.parent.parent)
    chosen: list[Path] = []
    for folder in sorted({Path(os.path.normpath(folder)) for folder in wanted if folder.exists()}):
        if any(folder.is_relative_to(other) for other in chosen):
            continue
        if folder.stat().st_mode & 0o005 != 0o005:
            raise ClusterError(f"Pods run as user {USER} and may not read {folder}: `chmod o+rx {folder}`.")
        chosen.append(folder)
    return chosen


def environment() -> dict[str, str]:
    """The variables with which this machine's Python runs in a busybox."""
    found = {
        "PATH": f"{REPOSITORY}/.venv/bin:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HOME": "/tmp",
    }
    libraries = Path(sys.base_prefix) / "lib"
    if any(libraries.glob("libpython*.so*")):
        found["LD_LIBRARY_PATH"] = str(libraries)  # in the pod there is no cache of ld.so that would know of it
    return found


def share(folder: Path) -> None:
    """Let pods write into a folder and into all that anybody makes in it, whatever the maker's umask.

    In a real cluster the control plane and the workers run as one group; the tests' control plane is root.
    """
    folder.chmod(0o777)
    anybody = [(0x01, 7, -1), (0x04, 7, -1), (0x20, 7, -1)]  # owner, group, others: read, write, enter
    entries = b"".join(struct.pack("<HHi", tag, rights, who) for tag, rights, who in anybody)
    os.setxattr(folder, "system.posix_acl_default", struct.pack("<I", 2) + entries)


def _volume(namespace: str, claim: str, folder: Path, mode: str) -> list[dict[str, Any]]:
    """A folder as a volume, and the one claim that may have it: each names the other, so nothing is searched for."""
    size = {"storage": "1Gi"}
    volume = f"{namespace}-{claim}"
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume, "labels": {LABEL: namespace}},
            "spec": {
                "accessModes": [mode],
                "capacity": size,
                "claimRef": {"namespace": namespace, "name": claim},
                "hostPath": {"path": str(folder), "type": "Directory"},
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "",
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": claim, "namespace": namespace},
            "spec": {
                "accessModes": [mode],
                "resources": {"requests": size},
                "storageClassName": "",
                "volumeName": volume,
            },
        },
    ]


def _wait_for_what_pods_need(cluster: Cluster | GivenCluster, namespace: str) -> None:
    # Pods are refused until the controller manager has made the account. After an outage it looks again with a
    # back-off, which grows to a minute when there was another one shortly before. A pod that came before its volumes
    # are bound would be looked at again after some 10 s.
    deadline = time.monotonic() + 90
    path = f"/api/v1/namespaces/{namespace}"
    while cluster.http.get(f"{path}/serviceaccounts/default").status_code != 200 or any(
        claim["status"].get("phase") != "Bound"
        for claim in cluster.http.get(f"{path}/persistentvolumeclaims").json()["items"]
    ):
        if time.monotonic() > deadline:
            raise ClusterError(f"The namespace {namespace} has no service account, or no volumes, after 90 s.")
        time.sleep(0.05)
