"""Projects, API keys, and who changed what: what admins do."""

from datetime import timedelta
from typing import Annotated, TypeVar

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field, ValidationError

from api import bodies, openapi
from api.auth import Admin, Viewer
from api.control import Control
from api.domain.access import Role
from api.errors import documented, invalid
from api.routes.again import Again
from api.routes.parameters import TEXT, After, Limit, refusing
from api.settings import Settings
from api.store import audit, keys, projects
from api.store.database import utcnow
from api.store.pages import Slice
from api.store.tables import ApiKeyRow
from api.views import Page
from api.views_access import AuditView, CallerView, KeyView, NewKeyView, ProjectView
from worker.contract.check import problem
from worker.contract.problem import Problem
from worker.contract.values import Duration, Name, Strict

of_projects = APIRouter(prefix="/v1/projects", tags=["access"], route_class=Again)
of_keys = APIRouter(prefix="/v1/api-keys", tags=["access"], route_class=Again)
of_audit = APIRouter(prefix="/v1/audit", tags=["access"], route_class=Again)
routers = (of_projects, of_keys, of_audit)

ProjectName = Annotated[str, Path(max_length=63, pattern=TEXT, examples=["research"])]
KeyId = Annotated[str, Path(max_length=64, pattern=TEXT, examples=["key-k3v7qd2mzxna"])]
_COUNT = Annotated[int, Field(ge=0, le=2**31 - 1)]

_Model = TypeVar("_Model", bound=BaseModel)


class Quota(Strict):
    """How much a project may have at a time; null, or left out: as much as there is."""

    jobs: _COUNT | None = Field(default=None, description="active jobs; more wait in the queue")
    accelerators: _COUNT | None = Field(default=None, description="that its active jobs ask for together")
    bytes: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = Field(
        default=None, description="of its files and models; an upload beyond that is refused"
    )


class NewProject(Strict):
    """A project that is to be."""

    name: Name
    namespace: str | None = Field(
        default=None,
        max_length=63,
        description="on Kubernetes: where its attempts run, one of NAMESPACES; absent: where NAMESPACE says",
    )
    quota: Quota = Quota()


class ProjectChanges(Strict):
    """What may be changed of a project."""

    quota: Quota


class NewKey(Strict):
    """A key that is to be."""

    name: Name = Field(description="for whom, or for what")
    role: Annotated[Role, Field(strict=False)] = Role.EDITOR
    project: Name | None = Field(default=None, description="by its name; absent: the caller's")
    expires_in: Duration | None = Field(default=None, description="such as 30d; absent: it does not expire")


@of_projects.post(
    "", status_code=201, openapi_extra=openapi.body(NewProject), responses=documented(400, 409, 413, 415, 422)
)
async def create_project(request: Request, response: Response, control: Control, caller: Admin) -> ProjectView:
    """Makes a project. What is made in it is seen by its own keys alone, and by admins."""
    wanted = await _read(request, control.settings.max_body, NewProject)
    if wanted.namespace is not None:
        _require(wanted.namespace, control.settings)
    with refusing():
        async with control.database.transaction() as session:
            quota = projects.Quota(**wanted.quota.model_dump())
            row = await projects.create(session, wanted.name, quota, wanted.namespace)
            audit.note(session, caller, "project.create", row.name, **wanted.model_dump(exclude={"name"}))
    response.headers["Location"] = f"/v1/projects/{row.name}"
    return ProjectView.of(row, 0)


def _require(namespace: str, settings: Settings) -> None:
    """Raises Refusal unless attempts may run in the namespace."""
    if settings.cluster != "kubernetes":
        said = "there are none: attempts are processes of this machine"
    elif namespace not in settings.for_attempts:
        said = f"attempts may run in {', '.join(settings.for_attempts)}: NAMESPACES names more"
    else:
        return
    raise invalid([Problem("namespace", said)])


@of_projects.get("", responses=documented(422))
async def listed_projects(
    control: Control, caller: Viewer, limit: Limit = 50, after: After = None
) -> Page[ProjectView]:
    """A page of projects: an admin's holds all, that of others their own."""
    only = None if caller.role.allows(Role.ADMIN) else caller.project
    with refusing():
        async with control.database.reading() as session:
            rows, following = await projects.listed(session, only, Slice(limit, after))
            views = [ProjectView.of(row, await projects.stored(session, row.id)) for row in rows]
    return Page[ProjectView](data=views, next=following)


@of_projects.get("/{project}", responses=documented(404, 422))
async def read_project(project: ProjectName, control: Control, caller: Viewer) -> ProjectView:
    """One project, with what it may use and what it stores."""
    with refusing():
        async with control.database.reading() as session:
            row = await projects.get(session, project)
            if not (row.id == caller.project or caller.role.allows(Role.ADMIN)):
                raise projects.NoSuchProject(project)
            return ProjectView.of(row, await projects.stored(session, row.id))


@of_projects.patch(
    "/{project}", openapi_extra=openapi.body(ProjectChanges), responses=documented(400, 404, 413, 415, 422)
)
async def change_project(project: ProjectName, request: Request, control: Control, caller: Admin) -> ProjectView:
    """Changes what a project may use. Jobs that run are left alone."""
    wanted = await _read(request, control.settings.max_body, ProjectChanges)
    with refusing():
        async with control.database.transaction() as session:
            row = await projects.get(session, project, lock=True)
            projects.limit(row, projects.Quota(**wanted.quota.model_dump()))
            audit.note(session, caller, "project.change", row.name, quota=wanted.quota.model_dump())
            stored = await projects.stored(session, row.id)
    return ProjectView.of(row, stored)


@of_projects.delete("/{project}", status_code=204, responses=documented(404, 409, 422))
async def delete_project(project: ProjectName, control: Control, caller: Admin) -> None:
    """Deletes a project in which nothing is left, with its keys."""
    with refusing():
        async with control.database.transaction() as session:
            row = await projects.delete(session, project)
            audit.note(session, caller, "project.delete", row.name)


@of_keys.post("", status_code=201, openapi_extra=openapi.body(NewKey), responses=documented(400, 404, 413, 415, 422))
async def create_key(request: Request, response: Response, control: Control, caller: Admin) -> NewKeyView:
    """Makes an API key. It is shown in this answer and never again."""
    wanted = await _read(request, control.settings.max_body, NewKey)
    key, now = keys.fresh(), utcnow()
    expires_at = now + timedelta(seconds=wanted.expires_in) if wanted.expires_in is not None else None
    with refusing():
        async with control.database.transaction() as session:
            if wanted.project is not None:
                project = await projects.get(session, wanted.project)
            else:
                project = await projects.of(session, caller.project)
            row = await keys.create(
                session,
                key,
                project=project.id,
                name=wanted.name,
                role=wanted.role,
                expires_at=expires_at,
                created_by=caller.key,
            )
            audit.note(session, caller, "key.create", row.id, name=row.name, role=row.role, project=project.name)
    response.headers["Location"] = f"/v1/api-keys/{row.id}"
    response.headers["Cache-Control"] = "no-store"
    return NewKeyView(**_key(row, project.name).model_dump(), key=key)


@of_keys.get("", responses=documented(422))
async def listed_keys(control: Control, caller: Admin, limit: Limit = 50, after: After = None) -> Page[KeyView]:
    """A page of keys, the newest first; the expired and revoked ones too."""
    with refusing():
        async with control.database.reading() as session:
            rows, following = await keys.listed(session, Slice(limit, after))
    return Page[KeyView](data=[_key(row, project) for row, project in rows], next=following)


@of_keys.get("/self", responses=documented(422))
async def whoami(control: Control, caller: Viewer) -> CallerView:
    """Who calls, in which project, and as what."""
    async with control.database.reading() as session:
        project = await projects.of(session, caller.project)
    return CallerView(key=caller.key, name=caller.name, role=caller.role, project=project.name)


@of_keys.delete("/{key}", status_code=204, responses=documented(404, 422))
async def revoke_key(key: KeyId, control: Control, caller: Admin) -> None:
    """Ends a key for good. No replica answers it any more once this is answered."""
    with refusing():
        async with control.database.transaction() as session:
            row = await keys.revoke(session, key)
            audit.note(session, caller, "key.revoke", row.id, name=row.name)


@of_audit.get("", responses=documented(422))
async def changes(
    control: Control,
    caller: Admin,
    project: Annotated[str | None, Query(max_length=63, pattern=TEXT, description="by its name; absent: all")] = None,
    key: Annotated[str | None, Query(max_length=64, pattern=TEXT, description="what this key's holder did")] = None,
    target: Annotated[str | None, Query(max_length=64, pattern=TEXT, description="what was done to this")] = None,
    limit: Limit = 100,
    after: Annotated[int | None, Query(ge=1, le=2**53, description="`next` of the page before")] = None,
) -> Page[AuditView]:
    """Who changed what, the newest first."""
    async with control.database.reading() as session:
        rows = await audit.listed(session, project=project, key=key, target=target, before=after, limit=limit + 1)
    more = str(rows[limit - 1][0].id) if len(rows) > limit else None
    return Page[AuditView](data=[AuditView.of(row, name) for row, name in rows[:limit]], next=more)


async def _read(request: Request, limit: int, model: type[_Model]) -> _Model:
    """The body in this form. Raises Refusal."""
    _, document = await bodies.read_json(request, limit)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise invalid([problem(detail, model) for detail in error.errors()]) from None


def _key(row: ApiKeyRow, project: str) -> KeyView:
    return KeyView.model_validate({**row.__dict__, "project": project})
