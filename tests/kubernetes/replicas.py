"""Two replicas of the API behind a Service of the cluster, and two operators: each may be killed by itself."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from client import Client
from tests.cluster.cluster import Cluster
from tests.e2e.plane import free_port, wait_until
from tests.kubernetes.namespace import Namespace
from tests.kubernetes.observer import Observer
from tests.kubernetes.plane import Plane, Process

KEY = "rlhf_" + "an-admins-key-for-these-tests-alone"
_NAME = "control-plane"
_PORTS = {"people": 8000, "workers": 8001}


@dataclass
class Replicas:
    """What runs, with a client that reaches whichever API the Service chooses."""

    plane: Plane
    apis: list[Process]
    operators: list[Process]
    url: str

    def client(self, *, patience: float = 15.0) -> Client:
        """One more client, with connections of its own; how long it tries is in seconds."""
        return Client(self.url, key=KEY, patience=patience)

    def lives(self) -> None:
        """Returns once all APIs answer."""
        for process in self.apis:
            wait_until(lambda process=process: _ready(self.plane, process), what=f"a ready API ({process.log})")


@contextmanager
def replicas(
    folder: Path, cluster: Cluster, namespace: Namespace, databases: Callable[[], str], kubeconfig: Path
) -> Iterator[Replicas]:
    """Two of each, for the length of a `with`, in which no job ever has two live attempts."""
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": _NAME},
        "spec": {"ports": [{"name": name, "port": port} for name, port in _PORTS.items()]},
    }  # fmt: skip
    made = json.loads(
        cluster.kubectl("-n", namespace.name, "create", "-o", "json", "-f", "-", input=json.dumps(service))
    )
    address = made["spec"]["clusterIP"]
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "admin-key"
    key.write_text(KEY)
    plane = Plane(
        folder, cluster, namespace, databases, kubeconfig,
        AUTH="keys", ADMIN_KEY_FILE=str(key), HOST=cluster.host_address, LEASE="2",
        WORKER_URL=f"http://{address}:{_PORTS['workers']}",
    )  # fmt: skip
    apis = [plane.process("api", f"api-{n}", PORT=str(free_port()), WORKER_PORT=str(free_port())) for n in (1, 2)]
    operators = [plane.process("operator", f"operator-{n}") for n in (1, 2)]
    slices = [_slice(n, cluster.host_address, api) for n, api in enumerate(apis)]
    cluster.kubectl(
        "-n",
        namespace.name,
        "create",
        "-f",
        "-",
        input=json.dumps({"apiVersion": "v1", "kind": "List", "items": slices}),
    )
    observer = Observer(namespace.store).start()
    this = Replicas(plane, apis, operators, f"http://{address}:{_PORTS['people']}")
    try:
        apis[0].start()
        wait_until(lambda: _ready(plane, apis[0]), what=f"a ready API ({apis[0].log})")
        for process in (apis[1], *operators):
            process.start()
        this.lives()
        yield this
    finally:
        observer.stop()
        for process in (*operators, *apis):
            process.kill()
            print(f"--- {process.log.name}\n{process.log.read_text()[-3000:] if process.log.exists() else ''}")
    assert not observer.twice, observer.twice


def _ready(plane: Plane, process: Process) -> bool:
    assert process.alive, process.log.read_text()[-4000:]
    try:
        url = f"http://{plane.cluster.host_address}:{process.environment['PORT']}/readyz"
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _slice(number: int, host: str, api: Process) -> dict[str, Any]:
    """Where the Service finds one API: a process of this machine, and no pod."""
    found = {"people": api.environment["PORT"], "workers": api.environment["WORKER_PORT"]}
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": f"{_NAME}-{number}", "labels": {"kubernetes.io/service-name": _NAME}},
        "ports": [{"name": name, "port": int(port)} for name, port in found.items()],
        "endpoints": [{"addresses": [host], "conditions": {"ready": True}}],
    }  # fmt: skip
