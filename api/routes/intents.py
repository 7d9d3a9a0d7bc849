"""What an owner wants of a job: pause, resume, cancel, retry, clone."""

import copy
from typing import Any

from fastapi import APIRouter, Request, Response

from api import bodies, openapi
from api.auth import Editor
from api.control import Control, ControlPlane
from api.domain.access import Caller
from api.domain.job import Desired
from api.errors import Refusal, documented
from api.routes.again import Again
from api.routes.jobs import SpecPatch, make, shown
from api.routes.parameters import IdempotencyKey, IfMatch, JobId, generation, refusing
from api.store import audit, idempotency, jobs
from api.store.tables import JobRow
from api.views import JobView

router = APIRouter(prefix="/v1/jobs/{job}", tags=["jobs"], route_class=Again)
_ANSWERS = documented(404, 409, 412, 422)


@router.post("/pause", responses=_ANSWERS)
async def pause(job: JobId, response: Response, control: Control, caller: Editor, if_match: IfMatch = None) -> JobView:
    """Saves, stops, and holds nothing until `resume`."""
    return await _want(control, caller, job, Desired.PAUSE, response, if_match)


@router.post("/resume", responses=_ANSWERS)
async def resume(job: JobId, response: Response, control: Control, caller: Editor, if_match: IfMatch = None) -> JobView:
    """Goes on from the newest checkpoint."""
    return await _want(control, caller, job, Desired.RUN, response, if_match)


@router.post("/cancel", responses=_ANSWERS)
async def cancel(job: JobId, response: Response, control: Control, caller: Editor, if_match: IfMatch = None) -> JobView:
    """Stops without saving, for ever."""
    return await _want(control, caller, job, Desired.CANCEL, response, if_match)


@router.post("/retry", responses=_ANSWERS)
async def retry(job: JobId, response: Response, control: Control, caller: Editor, if_match: IfMatch = None) -> JobView:
    """Sends a failed job back to the queue; it goes on from its newest checkpoint."""
    wanted = generation(if_match)
    with refusing():
        async with control.database.transaction() as session:
            row = await jobs.retry(session, job, caller.project, wanted)
            audit.note(session, caller, "job.retry", job)
    return await _woken(control, row, response)


@router.post(
    "/clone",
    status_code=201,
    openapi_extra=openapi.body(SpecPatch, required=False),
    responses={
        200: {"model": JobView, "description": "What the Idempotency-Key has made before"},
        **documented(400, 404, 413, 415, 422),
    },
)
async def clone(
    job: JobId,
    request: Request,
    response: Response,
    control: Control,
    caller: Editor,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """A new job with the same spec, references resolved anew. The body, if there is one, is a merge patch (RFC 7396)
    of the spec."""
    raw, patch = await bodies.read_json_if_any(request, control.settings.max_body)
    if not isinstance(patch, dict):
        raise Refusal(422, "write a JSON object: what is to be other than in the job's spec")
    with refusing():
        async with control.database.reading() as session:
            row = await jobs.get(session, job, caller.project)
    spec = {**_standing_alone(row), "name": row.name, "metadata": row.metadata_}
    spec["queue"] = {**spec.get("queue", {}), "priority": row.priority}
    key = jobs.Key(idempotency_key, idempotency.fingerprint(f"clone {job}", raw)) if idempotency_key else None
    return await make(control, caller, response, merge(spec, patch), key, cloned_from=job)


def _standing_alone(row: JobRow) -> dict[str, Any]:
    """The spec of a pipeline's step with the models that it was given, as far as they are there, in place of steps."""
    spec = copy.deepcopy(row.spec)
    for need in row.needs:
        if (given := row.inputs.get(need["path"])) is not None:
            *way, last = need["path"].split(".")
            at: Any = spec
            for part in way:
                at = at[int(part)] if isinstance(at, list) else at[part]
            at[last] = given["reference"]
    return spec


def merge(document: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


async def _want(
    control: ControlPlane, caller: Caller, job: str, desired: Desired, response: Response, if_match: str | None
) -> JobView:
    wanted = generation(if_match)
    with refusing():
        async with control.database.transaction() as session:
            row = await jobs.want(session, job, caller.project, desired, wanted)
            audit.note(session, caller, f"job.{audit.WISHES[desired]}", job)
    return await _woken(control, row, response)


async def _woken(control: ControlPlane, row: JobRow, response: Response) -> JobView:
    await control.wakeups.wake(row.id)
    view = await shown(control, row)
    response.headers["ETag"] = view.etag
    return view
