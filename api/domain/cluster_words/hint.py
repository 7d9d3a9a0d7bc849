"""Something to do about a cluster's words."""

from collections.abc import Iterator
from dataclasses import dataclass

from worker.contract.spec import JobSpec

ADMIN_FILE = "the file of WORKER_POD"
"""Where the administrator says what all worker pods are like."""


@dataclass(frozen=True, slots=True)
class Hint:
    """Something to do about a cluster's words."""

    text: str
    setting: str = ""
    """Where it is the spec that has to change: `path=VALUE`, as `--set` takes it."""


def less(resource: str, spec: JobSpec) -> Iterator[Hint]:
    """How a job asks for less of what Kubernetes calls `resource`, where its spec says how much."""
    name, wanted = resource.removeprefix("requests.").removeprefix("limits."), spec.resources
    if name == "cpu":
        yield Hint("Ask for fewer cores a node: resources.cpu.", "resources.cpu=CORES")
    elif name == "memory":
        yield Hint("Ask for less memory a node: resources.memory.", "resources.memory=SIZE")
    elif name == wanted.accelerator and wanted.per_node > 1:
        yield Hint(f"Ask for fewer {name} a node: resources.per_node.", "resources.per_node=NUMBER")
    elif name in ("pods", "count/pods") and wanted.nodes > 1:
        yield Hint("Ask for fewer nodes: resources.nodes.", "resources.nodes=NUMBER")
