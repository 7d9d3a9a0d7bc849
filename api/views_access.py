"""What callers are shown of projects, keys and changes."""

from typing import Any

from pydantic import Field

from api.domain.access import Role
from api.store.tables import AuditRow, Project
from api.views import Time, View


class QuotaView(View):
    """How much a project may have at a time; null: as much as there is."""

    jobs: int | None
    accelerators: int | None
    bytes: int | None


class ProjectView(View):
    """A project."""

    name: str
    created_at: Time
    namespace: str | None = Field(description="of its own, where its attempts run on Kubernetes; null: NAMESPACE")
    quota: QuotaView
    stored: int = Field(description="bytes of its files and models")

    @classmethod
    def of(cls, row: Project, stored: int) -> "ProjectView":
        """The view of a row."""
        quota = QuotaView(jobs=row.max_jobs, accelerators=row.max_accelerators, bytes=row.max_bytes)
        return cls(name=row.name, created_at=row.created_at, namespace=row.namespace, quota=quota, stored=stored)


class KeyView(View):
    """An API key, without what makes it one."""

    id: str = Field(examples=["key-k3v7qd2mzxna"])
    name: str
    role: Role
    project: str
    created_at: Time
    created_by: str | None = Field(description="the key that made it; null: the command line")
    expires_at: Time | None
    last_used_at: Time | None = Field(description="to the minute")
    revoked_at: Time | None


class NewKeyView(KeyView):
    """An API key that was just made."""

    key: str = Field(description="the key itself; it is shown this once", examples=["rlhf_…"])


class CallerView(View):
    """Who calls."""

    key: str | None = Field(description="the key's id; null: whoever is on the control plane's machine")
    name: str
    role: Role
    project: str


class AuditView(View):
    """A change that somebody made."""

    id: int
    at: Time
    project: str | None = Field(description="where; null: that project is gone")
    key: str | None = Field(description="the key's id; null: whoever is on the control plane's machine")
    who: str
    action: str = Field(examples=["job.cancel"])
    target: str
    detail: dict[str, Any]

    @classmethod
    def of(cls, row: AuditRow, project: str | None) -> "AuditView":
        """The view of a row."""
        return cls.model_validate({**row.__dict__, "project": project, "key": row.key_id})
