"""All that lies on a cluster: every kind that its API server knows, those of no namespace too."""

import re
from collections.abc import Iterator

from tests.kubernetes.fixtures import AnyCluster

# What tells of others, and comes and goes by itself.
_NO_OBJECTS = ("events", "componentstatuses")
# Other tests' own, of which some may be on their way.
_OTHERS = re.compile(r"(?:namespaces|persistentvolumes) (t-[0-9a-f]{8})")


def everything(cluster: AnyCluster, *namespaces: str) -> set[str]:
    """Objects of no namespace and of these, as `kinds [namespace/]name`."""
    found = set()
    for group, kind, within in _kinds(cluster):
        for place in [f"namespaces/{name}/" for name in namespaces] if within else [""]:
            listed = cluster.http.get(f"{group}/{place}{kind}").raise_for_status().json()["items"] or []
            for each in listed:
                meta = each["metadata"]
                found.add(f"{kind} {meta['namespace']}/{meta['name']}" if within else f"{kind} {meta['name']}")
    return {
        each for each in found if not (other := _OTHERS.match(each)) or other[1] in {name[:10] for name in namespaces}
    }


def _kinds(cluster: AnyCluster) -> Iterator[tuple[str, str, bool]]:
    """Where each kind is asked for, its plural, and whether it lies in namespaces."""
    groups = cluster.http.get("/apis").raise_for_status().json()["groups"]
    for path in ["/api/v1", *(f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups)]:
        for kind in cluster.http.get(path).raise_for_status().json()["resources"]:
            if "list" in kind["verbs"] and kind["name"] not in _NO_OBJECTS:
                yield path, kind["name"], kind["namespaced"]
