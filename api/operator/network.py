"""Whom the pods of an attempt may talk to: each other, the control plane, DNS, the store where it is a bucket, and what
the administrator allows."""

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from api.operator.labels import own_labels
from api.operator.site import Site

_PORTS = {"http": 80, "https": 443}


def policy(site: Site, job: str, attempt: int) -> dict[str, Any]:
    """The `spec` of the attempt's NetworkPolicy."""
    # All ports between them: torch and NCCL listen on whatever port is free.
    each_other = [{"podSelector": {"matchLabels": own_labels(site, job, attempt)}}]
    return {
        "podSelector": {"matchLabels": own_labels(site, job, attempt)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": each_other}],
        "egress": [
            {"to": each_other},
            # Wherever it is: a Service of the cluster, a cache on the node's own address, or a server outside.
            {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]},
            to_control_plane(site),
            *([_to_url(site.bucket.endpoint, site.namespace)] if site.bucket is not None else []),
            *site.pod.egress,
        ],
    }


def to_control_plane(site: Site) -> dict[str, Any]:
    """The egress rule for the worker listener."""
    return _to_url(site.worker_url, site.namespace)


def _to_url(url: str, own: str) -> dict[str, Any]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    rule: dict[str, Any] = {"ports": [{"protocol": "TCP", "port": parts.port or _PORTS[parts.scheme]}]}
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        namespace = _namespace(host, own)
        # A name outside the cluster: a policy knows no names, so that any address will do, at this port alone.
        return rule if namespace is None else {"to": [_in_namespace(namespace)], **rule}
    return {"to": [{"ipBlock": {"cidr": f"{address}/{address.max_prefixlen}"}}], **rule}


def _namespace(host: str, own: str) -> str | None:
    """The namespace of a Service's name; None for any other name."""
    match host.rstrip(".").split("."):
        case [_]:
            return own
        case [_, namespace] | [_, namespace, "svc", *_]:
            return namespace
    return None


def _in_namespace(name: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
