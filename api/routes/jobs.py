"""Jobs: create, list, read, change, delete."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field, ValidationError

from api import bodies, openapi
from api.auth import Editor, Viewer
from api.control import Control, ControlPlane
from api.domain.access import Caller
from api.domain.job import Phase
from api.errors import Refusal, documented, invalid
from api.operator.manifest import CannotRender, preview
from api.routes.again import Again
from api.routes.parameters import (
    TEXT,
    After,
    IdempotencyKey,
    IfMatch,
    JobId,
    Limit,
    Tag,
    generation,
    refusing,
)
from api.store import audit, idempotency, jobs
from api.store.pages import Order, Slice
from api.store.tables import JobRow
from api.views import DryRun, JobView, OutputModel, Page
from worker.contract.check import InvalidSpec, parse_spec, problem
from worker.contract.order import Input
from worker.contract.problem import Problem
from worker.contract.spec import JobSpec, Metadata
from worker.contract.values import Name, Strict

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=Again)
_MAX_ENTRIES = 16


class JobChanges(Strict):
    """A merge patch (RFC 7396) of what may be changed of a job."""

    name: Name | None = None
    metadata: dict[str, str | None] | None = Field(default=None, description="an entry with null is taken out")
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = Field(default=None, description="higher starts first")


class SpecPatch(BaseModel):
    """A merge patch (RFC 7396) of a spec: null takes a field out."""

    model_config = {"extra": "allow"}


class _Metadata(Strict):
    metadata: Metadata


@router.post(
    "",
    status_code=201,
    openapi_extra=openapi.body(JobSpec),
    responses={
        200: {"model": JobView | DryRun, "description": "A dry run, or what the Idempotency-Key has made before"},
        **documented(400, 413, 415, 422),
    },
)
async def create(
    request: Request,
    response: Response,
    control: Control,
    caller: Editor,
    dry_run: Annotated[bool, Query(description="check everything, store nothing")] = False,
    idempotency_key: IdempotencyKey = None,
) -> JobView | DryRun:
    """Makes a job from a spec. Everything that is wrong with it is said at once, each with its path."""
    raw, document = await bodies.read_json(request, control.settings.max_body)
    if dry_run:
        spec, inputs = await _checked(control, caller, document)
        response.status_code = 200
        return DryRun(spec=spec.model_dump(mode="json"), inputs=inputs, manifest=_manifest(control, spec, inputs))
    key = jobs.Key(idempotency_key, idempotency.fingerprint("jobs", raw)) if idempotency_key else None
    return await make(control, caller, response, document, key)


async def make(
    control: ControlPlane,
    caller: Caller,
    response: Response,
    document: Any,
    key: jobs.Key | None,
    cloned_from: str | None = None,
) -> JobView:
    """A new job, or the one that the key has made before, as the response. Raises Refusal."""
    with refusing():
        if key is not None:
            async with control.database.reading() as session:
                before = await idempotency.find(session, caller.project, key.value, key.request_sha256)
                if before is not None:
                    response.status_code = 200
                    return await _shown(control, await jobs.get(session, before, caller.project), response)
        spec, inputs = await _checked(control, caller, document)
        async with control.database.transaction() as session:
            row, new = await jobs.create(
                session, spec, inputs, project=caller.project, key=key, cloned_from=cloned_from
            )
            if new:
                audit.note(session, caller, "job.create", row.id, name=row.name, stage=row.stage)
    if new:
        await control.wakeups.wake(row.id)
    response.status_code = 201 if new else 200
    return await _shown(control, row, response)


@router.get(
    "",
    response_model=Page[JobView],
    openapi_extra=openapi.prefixed(
        "metadata",
        "those with these entries; `metadata.KEY=VALUE` says the same as `metadata[KEY]=VALUE`",
        _MAX_ENTRIES,
    ),
    responses=documented(422),
)
async def listed(
    request: Request,
    control: Control,
    caller: Viewer,
    limit: Limit = 50,
    after: After = None,
    phase: Annotated[list[Phase] | None, Query(description="any of these")] = None,
    stage: Annotated[
        list[Annotated[str, Field(max_length=32, pattern=TEXT)]] | None, Query(description="any of these")
    ] = None,
    name: Annotated[str | None, Query(max_length=63, pattern=TEXT)] = None,
    pipeline: Annotated[str | None, Query(max_length=64, pattern=TEXT, description="only its steps")] = None,
    order: Order = "-created_at",
) -> Response:
    """A page of jobs, the newest first. `metadata.KEY=VALUE` asks for those with this entry."""
    filters = jobs.Filters(phase or (), stage or (), name, _metadata_filters(request), pipeline)
    with refusing():
        async with control.database.reading() as session:
            rows, following = await jobs.listed(session, caller.project, filters, Slice(limit, after, order))
            models = await jobs.outputs(session, rows)
    views = [JobView.of(row, [OutputModel.model_validate(m) for m in models[row.id]]) for row in rows]
    # Checked when it was made: FastAPI would do so once more.
    page = Page[JobView].model_construct(data=views, next=following)
    return Response(page.model_dump_json(), media_type="application/json")


@router.get(
    "/{job}",
    response_model=JobView,
    responses={304: {"description": "Not changed since the If-None-Match"}, **documented(404, 422)},
)
async def read(job: JobId, response: Response, control: Control, caller: Viewer, if_none_match: Tag = None) -> Any:
    """One job, with an ETag."""
    with refusing():
        row, models = await control.database.look(partial(jobs.look, id=job, project=caller.project))
    view = JobView.model_validate({**row, "models": models})
    document = view.model_dump_json().encode()
    tag = view.tagged(document)
    known = [part.strip().removeprefix("W/") for part in (if_none_match or "").split(",")]
    if tag in known or "*" in known:
        return Response(status_code=304, headers={"ETag": tag})
    # Checked when it was made: FastAPI would do so once more, and this is what everybody polls.
    return Response(document, media_type="application/json", headers={"ETag": tag})


@router.patch("/{job}", openapi_extra=openapi.body(JobChanges), responses=documented(400, 404, 409, 412, 413, 415, 422))
async def change(
    job: JobId, request: Request, response: Response, control: Control, caller: Editor, if_match: IfMatch = None
) -> JobView:
    """Changes name, metadata or priority; what is left out stays."""
    _, document = await bodies.read_json(request, control.settings.max_body)
    try:
        changes = JobChanges.model_validate(document)
    except ValidationError as error:
        raise invalid([problem(detail, JobChanges) for detail in error.errors()]) from None
    wanted = generation(if_match)
    with refusing():
        async with control.database.transaction() as session:
            metadata = None
            if changes.metadata is not None:
                before = await jobs.get(session, job, caller.project, lock=True)
                metadata = _merged(before.metadata_, changes.metadata)
            row = await jobs.change(
                session,
                job,
                caller.project,
                name=changes.name,
                metadata=metadata,
                priority=changes.priority,
                generation=wanted,
            )
            audit.note(session, caller, "job.change", job, **changes.model_dump(exclude_unset=True))
    if changes.priority is not None:
        await control.wakeups.wake(job)
    return await _shown(control, row, response)


@router.delete("/{job}", status_code=204, responses=documented(404, 409, 412, 422))
async def delete(job: JobId, control: Control, caller: Editor, if_match: IfMatch = None) -> None:
    """Deletes a job that has ended, with its checkpoints and logs; models stay, with their lineage."""
    wanted = generation(if_match)
    with refusing():
        async with control.database.transaction() as session:
            await jobs.delete(session, job, caller.project, wanted)
            audit.note(session, caller, "job.delete", job)
    await control.wakeups.wake(job)


async def _checked(control: ControlPlane, caller: Caller, document: Any) -> tuple[JobSpec, dict[str, Input]]:
    try:
        spec = parse_spec(document)
        return spec, await control.resolver.resolve(spec, caller.project)
    except InvalidSpec as error:
        raise invalid(error.problems) from None


def _manifest(control: ControlPlane, spec: JobSpec, inputs: dict[str, Input]) -> list[dict[str, Any]] | None:
    """The objects that a job would be made of; None: it would be processes of this machine. Raises Refusal."""
    if control.site is None:
        return None
    try:
        return preview(spec, inputs, control.site).all()
    except CannotRender as error:
        raise invalid(error.problems) from None


async def _shown(control: ControlPlane, row: JobRow, response: Response) -> JobView:
    view = await shown(control, row)
    response.headers["ETag"] = view.etag
    response.headers["Location"] = f"/v1/jobs/{row.id}"
    return view


async def shown(control: ControlPlane, row: JobRow) -> JobView:
    """The view of a row that was just written."""
    models = []
    if row.phase == Phase.SUCCEEDED:
        async with control.database.reading() as session:
            models = (await jobs.outputs(session, [row]))[row.id]
    return JobView.of(row, [OutputModel.model_validate(m) for m in models])


def _merged(before: dict[str, str], patch: dict[str, str | None]) -> Metadata:
    after = {key: value for key, value in {**before, **patch}.items() if value is not None}
    try:
        return _Metadata(metadata=after).metadata
    except ValidationError as error:
        raise invalid([problem(detail, _Metadata) for detail in error.errors()]) from None


def _metadata_filters(request: Request) -> dict[str, str]:
    wanted = {}
    for name, value in request.query_params.multi_items():
        if name.startswith("metadata."):
            wanted[name.removeprefix("metadata.")] = value
        elif name.startswith("metadata[") and name.endswith("]"):
            wanted[name.removeprefix("metadata[").removesuffix("]")] = value
    if len(wanted) > _MAX_ENTRIES or any("\x00" in text for pair in wanted.items() for text in pair):
        raise Refusal(
            422, "metadata: too many entries, or a NUL in one", [Problem("metadata", f"at most {_MAX_ENTRIES} entries")]
        )
    return wanted
