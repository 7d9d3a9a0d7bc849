"""A request to an API server, in the words of RBAC."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


@dataclass(frozen=True)
class ApiRequest:
    """What was asked for. `resource` is as in a Role, such as `jobs` or `pods/log`; empty for `/version` or so."""

    method: str
    path: str
    query: Mapping[str, str]
    verb: str
    group: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""
    body: bytes = b""


Predicate = Callable[[ApiRequest], bool]


def anything(request: ApiRequest) -> bool:
    """Matches every request."""
    return True


def asking(verb: str, resource: str = "", name: str = "") -> Predicate:
    """Matches one verb, such as `create`, on a resource (any, when empty) of a name (any, when empty)."""

    def matches(request: ApiRequest) -> bool:
        return request.verb == verb and resource in {"", request.resource} and name in {"", request.name}

    return matches


def parse(method: str, path: str, query: Mapping[str, str], body: bytes = b"") -> ApiRequest:
    """Read a request as the API server's authorizer does."""
    parts = path.strip("/").split("/")
    if parts[0] == "api" and len(parts) > 2:
        group, rest = "", parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, rest = parts[1], parts[3:]
    else:
        return ApiRequest(method, path, query, method.lower(), body=body)
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        if len(rest) > 2 and rest[2] not in {"status", "finalize"}:
            rest = rest[2:]
    resource, name = rest[0], rest[1] if len(rest) > 1 else ""
    if len(rest) > 2:
        resource = f"{resource}/{rest[2]}"
    if method == "DELETE":
        verb = "delete" if name else "deletecollection"
    elif method in {"GET", "HEAD"}:
        watching = query.get("watch", "").lower() in {"1", "true"}
        verb = "watch" if watching else "get" if name else "list"
    else:
        verb = _VERBS[method]
    return ApiRequest(method, path, query, verb, group, resource, namespace, name, body)
