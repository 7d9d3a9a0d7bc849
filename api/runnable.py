"""What a spec asks of the cluster, and this one does not give: said when it is POSTed, and not when it starts."""

from collections.abc import Mapping

from api.operator.manifest import CannotRender, preview
from api.operator.site import Site
from api.settings import Settings
from worker.contract.order import Input
from worker.contract.problem import Problem
from worker.contract.spec import JobSpec


def not_runnable(spec: JobSpec, inputs: Mapping[str, Input], settings: Settings, site: Site | None) -> list[Problem]:
    """What is in the way of running a spec here. `inputs` is what its references lead to."""
    if settings.cluster == "local":
        return _needs_a_cluster(spec)
    try:
        if site is not None:
            preview(spec, inputs, site)
    except CannotRender as error:
        return error.problems
    return []


def _needs_a_cluster(spec: JobSpec) -> list[Problem]:
    """What of a spec only a Kubernetes does."""
    found, only = [], "needs a Kubernetes, and this cluster is one machine; leave it out"
    if spec.resources.nodes > 1:
        said = f"this cluster is one machine; write 1, not {spec.resources.nodes}"
        found.append(Problem("resources.nodes", said))
    if spec.resources.pod is not None:
        found.append(Problem("resources.pod", only))
    if spec.queue.kueue is not None:
        found.append(Problem("queue.kueue", only))
    if spec.queue.kueue_priority_class is not None:
        found.append(Problem("queue.kueue_priority_class", only))
    return found
