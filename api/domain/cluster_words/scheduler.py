"""A scheduler that finds no node: room, taints, labels and neighbours."""

import re
from collections.abc import Iterator

from api.domain.cluster_words.hint import Hint, less
from api.domain.wording import listed
from worker.contract.spec import JobSpec

_INSUFFICIENT = re.compile(r"Insufficient ([\w-]+(?:\.[\w-]+)*(?:/[\w.-]*\w)?)")
# "node(s) had untolerated taint {key: value}", "... taint(s)" without one, "... taint {key: value}, that the pod ...".
_TAINT = re.compile(r"node\(s\) had (?:untolerated )?taint(?:s|\(s\))?(?: \{(?P<key>[^:}\s]+):? ?(?P<value>[^}]*)\})?")
_CONTROL_PLANE = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
_NODE_TROUBLE = ("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/")
_TAINTS = "`kubectl get nodes -o custom-columns=NAME:.metadata.name,TAINTS:.spec.taints`"


def room(said: str, spec: JobSpec) -> Iterator[Hint]:
    lacking = list(dict.fromkeys(_INSUFFICIENT.findall(said)))
    if lacking:
        yield Hint(f"If other pods hold the {listed(lacking)}, it starts by itself when they end.")
    for name in lacking:
        yield from less(name, spec)
        if name == spec.resources.accelerator:
            yield Hint(
                f"`kubectl describe nodes` shows how many {name} the nodes offer: none, where the device plugin does "
                "not run."
            )
    if "Too many pods" in said:
        yield Hint("The nodes have as many pods as they may: it starts by itself when others end.")


def taints(said: str, spec: JobSpec) -> Iterator[Hint]:
    for found in _TAINT.finditer(said):
        key = found["key"]
        if key is None:
            yield Hint(
                f"Nodes have taints that the pods do not tolerate ({_TAINTS} shows them): tolerate one by "
                "resources.pod.tolerations.",
                "'resources.pod.tolerations=[{key: KEY, operator: Exists}]'",
            )
        elif key == "node.kubernetes.io/unschedulable":
            yield Hint("A node is cordoned: `kubectl uncordon NODE` lets pods on it again.")
        elif key.startswith(_NODE_TROUBLE):
            yield Hint(f"A node is in trouble ({key.rpartition('/')[2]}); `kubectl describe nodes` says more.")
        elif key not in _CONTROL_PLANE:
            named = f"{key}={found['value']}" if found["value"] else key
            yield Hint(
                f"Nodes are set apart by the taint {named}: if the job may run on them, resources.pod.tolerations.",
                f"'resources.pod.tolerations=[{{key: {key}, operator: Exists}}]'",
            )
    if "node(s) were unschedulable" in said:
        yield Hint("A node is cordoned: `kubectl uncordon NODE` lets pods on it again.")


def placement(said: str, spec: JobSpec) -> Iterator[Hint]:
    pod = spec.resources.pod
    if "node affinity/selector" in said or "didn't match node selector" in said:
        own = [
            path
            for path, given in (
                ("resources.pod.node_selector", pod is not None and pod.node_selector),
                ("resources.pod.affinity", pod is not None and pod.affinity),
            )
            if given
        ]
        if own:
            yield Hint(
                f"No node that has room bears the labels that {listed(own)} asks for (`kubectl get nodes "
                "--show-labels`): ask for others.",
                f"{own[0]}=null",
            )
        else:
            yield Hint(
                "No node that has room bears the labels that the administrator asks for: `nodeSelector` in the file of "
                "WORKER_POD; `kubectl get nodes --show-labels` shows them."
            )
    if "affinity rules" in said or "pod affinity/anti-affinity" in said:
        if pod is not None and pod.affinity is not None:
            yield Hint(
                "No node has the neighbours that resources.pod.affinity asks for.", "resources.pod.affinity=null"
            )
        else:
            yield Hint(
                "Other pods keep this one from their nodes, by an anti-affinity of their own: wait for their end."
            )
    if "topology spread constraints" in said:
        yield Hint("The cluster's own rules for spreading pods leave no node: its administrator can change them.")
