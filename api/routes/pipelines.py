"""Pipelines: create, list, read, change what is wanted of them, delete."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from api import bodies, openapi
from api.auth import Editor, Viewer
from api.control import Control, ControlPlane
from api.domain.access import Caller
from api.domain.job import Desired
from api.errors import documented, invalid
from api.routes.again import Again
from api.routes.parameters import TEXT, After, IdempotencyKey, refusing
from api.store import audit, idempotency, jobs, pipelines
from api.store.pages import Slice
from api.views import Page, PipelineDryRun, PipelineView
from worker.contract.check import InvalidSpec
from worker.contract.order import Input
from worker.contract.pipeline import PipelineSpec, parse_pipeline

router = APIRouter(prefix="/v1/pipelines", tags=["pipelines"], route_class=Again)
PipelineId = Annotated[str, Path(max_length=64, pattern=TEXT, examples=["pipe-k3v7qd2mzxna"])]
_ANSWERS = documented(404, 409, 422)


@router.post(
    "",
    status_code=201,
    openapi_extra=openapi.body(PipelineSpec),
    responses={
        200: {"model": PipelineView | PipelineDryRun, "description": "A dry run, or what the Idempotency-Key has made"},
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
) -> PipelineView | PipelineDryRun:
    """Makes the jobs of all steps at once, if nothing is wrong with any; each waits for what it needs of others."""
    raw, document = await bodies.read_json(request, control.settings.max_body)
    if dry_run:
        spec, inputs = await _checked(control, caller, document)
        response.status_code = 200
        steps = {name: step.model_dump(mode="json") for name, step in spec.steps.items()}
        return PipelineDryRun(name=spec.title, order=spec.in_order(), steps=steps, inputs=inputs)
    key = jobs.Key(idempotency_key, idempotency.fingerprint("pipelines", raw)) if idempotency_key else None
    with refusing():
        if key is not None:
            async with control.database.reading() as session:
                before = await idempotency.find(session, caller.project, key.value, key.request_sha256)
                if before is not None:
                    response.status_code = 200
                    return await _shown(control, await pipelines.get(session, before, caller.project))
        spec, inputs = await _checked(control, caller, document)
        async with control.database.transaction() as session:
            whole, new = await pipelines.create(session, spec, inputs, project=caller.project, key=key)
            if new:
                made = {str(step.step): step.id for step in whole.steps}
                audit.note(session, caller, "pipeline.create", whole.row.id, name=whole.row.name, steps=made)
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/pipelines/{whole.row.id}"
    return await _woken(control, whole) if new else await _shown(control, whole)


@router.get("", responses=documented(422))
async def listed(
    control: Control,
    caller: Viewer,
    limit: Annotated[int, Query(ge=1, le=100, description="entries a page")] = 20,
    after: After = None,
    name: Annotated[str | None, Query(max_length=63, pattern=TEXT)] = None,
) -> Page[PipelineView]:
    """A page of pipelines, the newest first."""
    with refusing():
        async with control.database.reading() as session:
            found, following = await pipelines.listed(session, caller.project, name, Slice(limit, after))
            models = await jobs.outputs(session, [step for whole in found for step in whole.steps])
    return Page[PipelineView](data=[PipelineView.of(w.row, w.steps, models) for w in found], next=following)


@router.get("/{pipeline}", responses=documented(404, 422))
async def read(pipeline: PipelineId, control: Control, caller: Viewer) -> PipelineView:
    """One pipeline with its steps, each after all that it needs."""
    with refusing():
        async with control.database.reading() as session:
            whole = await pipelines.get(session, pipeline, caller.project)
    return await _shown(control, whole)


@router.post("/{pipeline}/pause", responses=_ANSWERS)
async def pause(pipeline: PipelineId, control: Control, caller: Editor) -> PipelineView:
    """Pauses all steps that are not over."""
    return await _want(control, caller, pipeline, Desired.PAUSE)


@router.post("/{pipeline}/resume", responses=_ANSWERS)
async def resume(pipeline: PipelineId, control: Control, caller: Editor) -> PipelineView:
    """Goes on with all steps that are paused."""
    return await _want(control, caller, pipeline, Desired.RUN)


@router.post("/{pipeline}/cancel", responses=_ANSWERS)
async def cancel(pipeline: PipelineId, control: Control, caller: Editor) -> PipelineView:
    """Cancels all steps that are not over, for ever; what has succeeded stays."""
    return await _want(control, caller, pipeline, Desired.CANCEL)


@router.post("/{pipeline}/retry", responses=_ANSWERS)
async def retry(pipeline: PipelineId, control: Control, caller: Editor) -> PipelineView:
    """Sends the steps that failed, and those that failed with them, back to the queue: each goes on from its newest
    checkpoint. What has succeeded is not done again."""
    with refusing():
        async with control.database.transaction() as session:
            whole = await pipelines.retry(session, pipeline, caller.project)
            audit.note(session, caller, "pipeline.retry", pipeline)
    return await _woken(control, whole)


@router.delete("/{pipeline}", status_code=204, responses=_ANSWERS)
async def delete(pipeline: PipelineId, control: Control, caller: Editor) -> None:
    """Deletes a pipeline whose steps are all over, with their jobs; models stay, with their lineage."""
    with refusing():
        async with control.database.transaction() as session:
            gone = await pipelines.delete(session, pipeline, caller.project)
            audit.note(session, caller, "pipeline.delete", pipeline)
    for job in gone:
        await control.wakeups.wake(job)


async def _checked(
    control: ControlPlane, caller: Caller, document: Any
) -> tuple[PipelineSpec, dict[str, dict[str, Input]]]:
    """The spec, and by step what its references lead to; of all that is wrong in any step each with its path."""
    try:
        spec = parse_pipeline(document)
        return spec, await control.resolver.resolve_steps(spec, caller.project)
    except InvalidSpec as error:
        raise invalid(error.problems) from None


async def _want(control: ControlPlane, caller: Caller, id: str, desired: Desired) -> PipelineView:
    with refusing():
        async with control.database.transaction() as session:
            whole = await pipelines.want(session, id, caller.project, desired)
            audit.note(session, caller, f"pipeline.{audit.WISHES[desired]}", id)
    return await _woken(control, whole)


async def _woken(control: ControlPlane, whole: pipelines.Whole) -> PipelineView:
    for step in whole.steps:
        await control.wakeups.wake(step.id)
    return await _shown(control, whole)


async def _shown(control: ControlPlane, whole: pipelines.Whole) -> PipelineView:
    async with control.database.reading() as session:
        models = await jobs.outputs(session, whole.steps)
    return PipelineView.of(whole.row, whole.steps, models)
