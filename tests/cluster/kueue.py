"""A real Kueue beside the cluster: it admits suspended Jobs to a queue of 2 CPUs."""

import json
import os
import shutil
import time
from collections.abc import Callable

from tests.cluster.build import KUEUE, program
from tests.cluster.layout import ADMIN, FOLDER, KUEUE_WEBHOOK
from tests.cluster.machine import ClusterError
from tests.cluster.process import Processes

NAME = "kueue"
QUEUE = "team-a"

_CONFIGURATION = {
    "apiVersion": "config.kueue.x-k8s.io/v1beta1",
    "kind": "Configuration",
    "health": {"healthProbeBindAddress": "0"},
    "metrics": {"bindAddress": "0"},
    "webhook": {"port": KUEUE_WEBHOOK},
    "leaderElection": {"leaderElect": False},
    "internalCertManagement": {"enable": False},
    "integrations": {"frameworks": ["batch/job"]},
}
# Its webhooks, which are not installed here, would fill in what the defaults of the CRDs leave out.
_QUOTAS = [{"name": "cpu", "nominalQuota": "2"}, {"name": "memory", "nominalQuota": "8Gi"}]
_OBJECTS = [
    {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "ResourceFlavor", "metadata": {"name": "any"}},
    {
        "apiVersion": "kueue.x-k8s.io/v1beta1",
        "kind": "ClusterQueue",
        "metadata": {"name": QUEUE},
        "spec": {
            "namespaceSelector": {},
            "queueingStrategy": "BestEffortFIFO",
            "preemption": {"withinClusterQueue": "LowerPriority"},
            "flavorFungibility": {"whenCanBorrow": "Borrow", "whenCanPreempt": "TryNextFlavor"},
            "resourceGroups": [
                {"coveredResources": ["cpu", "memory"], "flavors": [{"name": "any", "resources": _QUOTAS}]}
            ],
        },
    },
]


def start(processes: Processes, kubectl: Callable[..., str]) -> None:
    """Start Kueue, and return when it serves the cluster queue `team-a`; nothing if it runs.

    Raises:
        ClusterError: it did not come up.
    """
    if not processes.alive(NAME):
        kubectl("apply", "--server-side", "-f", str(KUEUE.folder / "crds"))
        kubectl("wait", "--for=condition=Established", "--all", "crd", "--timeout=30s")
        folder = FOLDER / "kueue"
        # It looks for its certificates below its own temporary folder.
        certificates = folder / "k8s-webhook-server" / "serving-certs"
        certificates.mkdir(parents=True, exist_ok=True)
        for source, name in (("api-server.crt", "tls.crt"), ("api-server.key", "tls.key"), ("ca.crt", "ca.crt")):
            shutil.copy(FOLDER / "pki" / source, certificates / name)
        file = folder / "configuration.json"
        file.write_text(json.dumps(_CONFIGURATION))
        processes.start(
            NAME,
            [str(program("kueue")), f"--config={file}", "--feature-gates=VisibilityOnDemand=false"],
            {"TMPDIR": str(folder), "KUBECONFIG": os.fspath(ADMIN)},
        )
    kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": _OBJECTS}))
    deadline = time.monotonic() + 60
    active = "jsonpath={.status.conditions[?(@.type=='Active')].status}"
    while kubectl("get", "clusterqueue", QUEUE, "-o", active) != "True":
        if time.monotonic() > deadline or not processes.alive(NAME):
            raise ClusterError(f"Kueue did not come up: {processes.last_words(NAME)}")
        time.sleep(0.2)


def local_queue(namespace: str) -> str:
    """A queue named `team-a` in a namespace, as JSON for `kubectl apply`."""
    return json.dumps(
        {
            "apiVersion": "kueue.x-k8s.io/v1beta1",
            "kind": "LocalQueue",
            "metadata": {"name": QUEUE, "namespace": namespace},
            "spec": {"clusterQueue": QUEUE},
        }
    )
