"""Who may talk to whom on a running installation, by its policies, pods and namespaces as the API server has them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.chart.network import Place, Policy, allowed
from tests.chart.release import Release

RENDEZVOUS = (29400, 29500)
"""Where the pods of an attempt meet; no container tells of them."""
Talk = tuple[str, str, int, str]
"""Who, whom, at which port, by which protocol."""


@dataclass(frozen=True)
class Picture:
    """What there is at one moment: of each kind of pod one, with its open ports, and all policies."""

    places: dict[str, Place]
    ports: dict[str, set[tuple[int, str]]]
    policies: list[Policy]

    def talks(self) -> set[Talk]:
        """All that is allowed."""
        return {
            (source, target, port, protocol)
            for source in self.places
            for target in self.places
            for port, protocol in self.ports[target]
            if source != target and allowed(self.policies, self.places[source], self.places[target], port, protocol)
        }


def picture(made: Release, job: str, other: str) -> Picture | None:
    """What there is now; None while there is no pod of one kind: two of the job, one of the other, one of a hook."""
    namespaces = {each["metadata"]["name"]: each["metadata"]["labels"] for each in _items(made, "/api/v1/namespaces")}
    named: dict[str, dict[str, Any]] = {}
    for pod in _pods(made):
        labels = pod["metadata"]["labels"]
        if pod["metadata"]["namespace"] == made.namespace:
            named.setdefault(labels["app.kubernetes.io/component"], pod)
        elif labels.get("rlhf-operator/job") == job:
            named[f"worker {labels['batch.kubernetes.io/job-completion-index']}"] = pod
        elif labels.get("rlhf-operator/job") == other:
            named["other worker"] = pod
    if named.keys() != {"api", "operator", "postgresql", "hook", "worker 0", "worker 1", "other worker"}:
        return None
    places, ports = {}, {}
    for name, pod in named.items():
        meta = pod["metadata"]
        places[name] = Place(meta["namespace"], meta["labels"], namespaces[meta["namespace"]], pod["status"]["podIP"])
        ports[name] = {
            (port["containerPort"], port.get("protocol", "TCP"))
            for container in pod["spec"]["containers"]
            for port in container.get("ports", [])
        } | ({(port, "TCP") for port in RENDEZVOUS} if "worker" in name else set())
    policies = []
    for namespace in (made.namespace, made.jobs.name):
        policies += _items(made, f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies")
    for name, namespace in (("neighbour", made.namespace), ("notebook", made.jobs.name), ("visitor", "default")):
        places[name] = Place(namespace, {"app": name}, namespaces[namespace], "10.255.255.1")
        ports[name] = {(80, "TCP")}
    (slice_,) = _items(made, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices")
    places["apiserver"] = Place(address=slice_["endpoints"][0]["addresses"][0])
    ports["apiserver"] = {(port["port"], port["protocol"]) for port in slice_["ports"]}
    places["internet"] = Place(address="192.0.2.1")
    ports["internet"] = {(22, "TCP"), (53, "UDP"), (53, "TCP"), (80, "TCP"), (443, "TCP"), (5432, "TCP")}
    return Picture(places, ports, policies)


def _pods(made: Release) -> Iterator[dict[str, Any]]:
    for namespace in (made.namespace, made.jobs.name):
        for pod in _items(made, f"/api/v1/namespaces/{namespace}/pods"):
            if pod["status"].get("podIP"):
                yield pod


def _items(made: Release, path: str) -> list[dict[str, Any]]:
    return list(made.cluster.http.get(path).raise_for_status().json()["items"])
