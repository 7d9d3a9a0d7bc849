"""Kubernetes' rules of who may talk to whom, by policies as they were rendered, or as they are on a cluster."""

import ipaddress
from dataclasses import dataclass, field
from typing import Any

Policy = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """A pod, by its namespace and its labels; without a namespace it is no pod: somewhere outside.

    What is not known of a namespace's labels is the one that Kubernetes gives it; without an address, it is any.
    """

    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    namespace_labels: dict[str, str] = field(default_factory=dict)
    address: str = ""


def allowed(policies: list[Policy], source: Place, target: Place, port: int, protocol: str = "TCP") -> bool:
    """Whether `source` may open a connection to `target`: one that leaves must be let out, and be let in."""
    return _lets(policies, source, target, port, protocol, "egress", "to") and _lets(
        policies, target, source, port, protocol, "ingress", "from"
    )


def _lets(
    policies: list[Policy], here: Place, there: Place, port: int, protocol: str, direction: str, whom: str
) -> bool:
    selecting = [
        policy
        for policy in policies
        if here.namespace == policy["metadata"]["namespace"]
        and _selected(policy["spec"]["podSelector"], here.labels)
        and direction.capitalize() in policy["spec"]["policyTypes"]
    ]
    return not selecting or any(
        _at(rule, port, protocol) and _to(rule.get(whom), there, policy["metadata"]["namespace"])
        for policy in selecting
        for rule in policy["spec"].get(direction, [])
    )


def _at(rule: Policy, port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    if any(not isinstance(each.get("port"), int) or "endPort" in each for each in ports or ()):
        raise NotImplementedError(ports)
    return not ports or any(each["port"] == port and each.get("protocol", "TCP") == protocol for each in ports)


def _to(peers: list[Policy] | None, there: Place, namespace: str) -> bool:
    return not peers or any(_is(peer, there, namespace) for peer in peers)


def _is(peer: Policy, there: Place, namespace: str) -> bool:
    if "ipBlock" in peer:
        return _in_block(peer["ipBlock"], there)
    if not there.namespace:
        return False
    where = peer.get("namespaceSelector")
    inside = (
        there.namespace == namespace
        if where is None
        else _selected(where, {"kubernetes.io/metadata.name": there.namespace, **there.namespace_labels})
    )
    return inside and _selected(peer.get("podSelector", {}), there.labels)


def _in_block(block: Policy, there: Place) -> bool:
    if not there.address:
        return block["cidr"] == "0.0.0.0/0"
    address = ipaddress.ip_address(there.address)
    within, *without = (ipaddress.ip_network(each) for each in [block["cidr"], *block.get("except", [])])
    return address in within and not any(address in each for each in without)


def _selected(selector: Policy, labels: dict[str, str]) -> bool:
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for each in selector.get("matchExpressions", []):
        found = labels.get(each["key"])
        if each["operator"] not in ("In", "NotIn"):
            raise NotImplementedError(each["operator"])
        if (found in each["values"]) is not (each["operator"] == "In"):
            return False
    return True
