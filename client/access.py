"""Projects, API keys and who changed what: what admins do, and who one is."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from client.records import Record
from client.transport import Transport


class Quota(Record):
    """How much a project may have at a time; None: as much as there is."""

    jobs: int | None = None
    accelerators: int | None = None
    bytes: int | None = None


class Project(Record):
    """Jobs, files and models that only its own keys and admins see."""

    name: str
    created_at: datetime
    namespace: str | None = None
    quota: Quota = Quota()
    stored: int = 0


class Key(Record):
    """An API key, without what makes it one."""

    id: str
    name: str
    role: str
    project: str
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


class NewKey(Key):
    """A key that was just made: `key` is shown this once."""

    key: str


class Caller(Record):
    """Who calls."""

    key: str | None
    name: str
    role: str
    project: str


class Change(Record):
    """What somebody changed."""

    id: int
    at: datetime
    project: str | None
    who: str
    action: str
    target: str
    detail: dict[str, Any] = {}


class Projects:
    """`client.projects`."""

    def __init__(self, transport: Transport):
        self._transport = transport

    def create(self, name: str, *, namespace: str | None = None, **quota: int | None) -> Project:
        """A new project; `jobs`, `accelerators` and `bytes` limit it. `namespace`: of its own on Kubernetes.

        Raises Problem (409: there is one).
        """
        body = {"name": name, "namespace": namespace, "quota": quota}
        return Project.model_validate(self._transport.call("POST", "/v1/projects", json=body).json())

    def get(self, name: str) -> Project:
        """One project. Raises Problem (404)."""
        return Project.model_validate(self._transport.get(f"/v1/projects/{name}"))

    def all(self) -> Iterator[Project]:
        """All projects that one may see."""
        return (Project.model_validate(entry) for entry in self._transport.pages("/v1/projects"))

    def limit(self, name: str, **quota: int | None) -> Project:
        """Sets the whole quota; what is left out is not limited. Raises Problem (404)."""
        answer = self._transport.call("PATCH", f"/v1/projects/{name}", json={"quota": quota})
        return Project.model_validate(answer.json())

    def delete(self, name: str) -> None:
        """Removes an empty project with its keys. Raises Problem (409: something is left in it)."""
        self._transport.call("DELETE", f"/v1/projects/{name}")

    def changes(self, *, limit: int | None = None, **by: Any) -> Iterator[Change]:
        """Who changed what, the newest first; `project`, `key` or `target` name whose changes."""
        return (Change.model_validate(entry) for entry in self._transport.pages("/v1/audit", limit=limit, **by))


class Keys:
    """`client.keys`."""

    def __init__(self, transport: Transport):
        self._transport = transport

    def create(
        self, name: str, *, role: str = "editor", project: str | None = None, expires_in: str | None = None
    ) -> NewKey:
        """A new key. Raises Problem."""
        body = {"name": name, "role": role, "project": project, "expires_in": expires_in}
        return NewKey.model_validate(self._transport.call("POST", "/v1/api-keys", json=body).json())

    def all(self) -> Iterator[Key]:
        """All keys, the newest first."""
        return (Key.model_validate(entry) for entry in self._transport.pages("/v1/api-keys"))

    def revoke(self, id: str) -> None:
        """Ends a key for good. Raises Problem (404)."""
        self._transport.call("DELETE", f"/v1/api-keys/{id}")

    def whoami(self) -> Caller:
        """Who this client is to the control plane. Raises Problem (401)."""
        return Caller.model_validate(self._transport.get("/v1/api-keys/self"))
