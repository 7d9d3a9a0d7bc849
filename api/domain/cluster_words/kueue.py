"""What Kueue says of a workload that it does not admit."""

import re
from collections.abc import Iterator

from api.domain.cluster_words.hint import Hint, less
from api.domain.wording import listed
from worker.contract.spec import JobSpec

_TOO_MUCH = re.compile(
    r"insufficient quota for (\S+) in flavor (\S+?)(?:, .*?maximum capacity(?: \((.+?)\))?| in ClusterQueue)"
)
_UNUSED = re.compile(r"insufficient unused quota(?: in cohort)? for (\S+) in flavor (\S+?),? (\S+) more needed")
_BORROWING = re.compile(r"borrowing limit for (\S+) in flavor (\S+) exceeded")
_UNCOVERED = re.compile(r"resource (\S+) unavailable in ClusterQueue")
_NO_QUEUE = re.compile(r"(LocalQueue|ClusterQueue) (\S+) (doesn't exist|not found|is terminating or missing)")
_STOPPED = re.compile(r"(?:The )?(LocalQueue|ClusterQueue)(?: (\S+))? is (stopped|inactive)")


def queue(said: str, spec: JobSpec) -> Iterator[Hint]:
    for resource, flavor, _ in _TOO_MUCH.findall(said):
        yield Hint(
            f"The queue never has so much {resource} in its flavor {flavor}: its administrator can raise the quota."
        )
        yield from less(resource, spec)
        if spec.resources.nodes > 1:
            yield Hint("Ask for fewer nodes: resources.nodes.", "resources.nodes=NUMBER")
    if waits := [f"{resource} ({more} more)" for resource, _, more in _UNUSED.findall(said)]:
        yield Hint(f"It is admitted by itself when others give back their {listed(waits)}.")
        yield Hint(
            "A higher class goes before others: queue.kueue_priority_class (`kubectl get workloadpriorityclasses`).",
            "queue.kueue_priority_class=NAME",
        )
    for resource, flavor in _BORROWING.findall(said):
        yield Hint(f"The queue may not borrow more {resource} of flavor {flavor}: wait, or have its limit raised.")
    for resource in _UNCOVERED.findall(said):
        yield Hint(f"The queue hands out no {resource}: name another queue, queue.kueue.", "queue.kueue=QUEUE")
    for kind, name, _ in _NO_QUEUE.findall(said):
        if kind == "LocalQueue":
            yield Hint(
                f"There is no LocalQueue {name} in the job's namespace: `kubectl get localqueues` lists those that are "
                "there; name one, queue.kueue.",
                "queue.kueue=QUEUE",
            )
        else:
            yield Hint(f"The ClusterQueue {name} behind the queue does not exist: its administrator can make it.")
    for kind, name, how in _STOPPED.findall(said):
        asked = f"`kubectl describe {kind.lower()}{f' {name}' if name else ''}`"
        yield Hint(f"The {kind}{f' {name}' if name else ''} is {how}: {asked} says why; its administrator starts it.")
    if "doesn't match ClusterQueue selector" in said:
        yield Hint("The ClusterQueue takes nothing from the job's namespace: its administrator can let it.")
    if "untolerated taint" in said and "in flavor" in said:
        yield Hint(
            "The nodes of the queue's flavor have a taint: tolerate it, resources.pod.tolerations.",
            "'resources.pod.tolerations=[{key: KEY, operator: Exists}]'",
        )
    if re.search(r"flavor \S+ doesn't match node affinity", said):
        yield Hint(
            "The queue's nodes are not those that resources.pod.node_selector or its affinity ask for.",
            "resources.pod.node_selector=null",
        )
    if "Kueue has not seen it yet" in said:
        yield Hint(
            f"`kubectl get localqueue {spec.queue.kueue or ''}` in its namespace shows whether the queue is there; "
            "`kubectl -n kueue-system get pods`, whether Kueue runs."
        )
    if "what Kueue says of it cannot be read" in said:
        yield Hint("The operator may not read Kueue's Workloads: its administrator applies the operator's Role again.")
