"""Pipelines as their owners see and change them: jobs that were made together, and are wanted together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from api.domain.job import FINAL, Desired, Phase
from api.domain.pipeline import hopeless, waits_for
from api.store import idempotency, jobs
from api.store.database import utcnow
from api.store.ids import new_id
from api.store.jobs import Conflict, Key, Place
from api.store.pages import Slice, page
from api.store.tables import JobRow, PipelineRow
from worker.contract.order import Input
from worker.contract.pipeline import PipelineSpec
from worker.contract.steps import needs


class NoSuchPipeline(LookupError):
    """There is no pipeline of this id, or it was deleted."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A pipeline with the jobs of its steps, each after those that it needs."""

    row: PipelineRow
    steps: Sequence[JobRow]


async def create(
    session: AsyncSession,
    spec: PipelineSpec,
    inputs: Mapping[str, dict[str, Input]],
    *,
    project: str,
    key: Key | None = None,
) -> tuple[Whole, bool]:
    """A new pipeline with the jobs of all its steps, or the one that `key` has made before; and whether it is new.

    `inputs`: by step, what its references to anything but steps lead to. Raises KeyReused, InputGone.
    """
    id = new_id("pipe")
    if key is not None:
        owner = await idempotency.claim(session, project, key.value, key.request_sha256, id)
        if owner != id:
            return await get(session, owner, project), False
    row = PipelineRow(id=id, project_id=project, name=spec.title, metadata_=dict(spec.metadata), created_at=utcnow())
    session.add(row)
    await session.flush()
    made: dict[str, JobRow] = {}
    for step in spec.in_order():
        named = spec.steps[step].model_copy(update={"name": spec.name_of(step)})
        wanted = [{**need._asdict(), "job": made[need.step].id} for need in needs(named)]
        place = Place(id, step, wanted, waits_for(need["step"] for need in wanted) if wanted else "")
        try:
            made[step], _ = await jobs.create(session, named, inputs[step], project=project, place=place)
        except jobs.InputGone as error:
            raise jobs.InputGone(f"steps.{step}.{error.path}") from None
    return Whole(row, list(made.values())), True


async def get(session: AsyncSession, id: str, project: str, *, lock: bool = False) -> Whole:
    """One pipeline of a project; with `lock` its jobs' rows are locked. Raises NoSuchPipeline."""
    query = select(PipelineRow).where(PipelineRow.id == id, PipelineRow.project_id == project)
    row = await session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NoSuchPipeline(id)
    return Whole(row, (await _steps(session, [id], lock=lock))[id])


async def listed(session: AsyncSession, project: str, name: str | None, part: Slice) -> tuple[list[Whole], str | None]:
    """A page of a project's pipelines, and the cursor of the next. Raises BadCursor."""
    query: Select[PipelineRow] = select(PipelineRow).where(PipelineRow.project_id == project)
    if name is not None:
        query = query.where(PipelineRow.name == name)
    rows, following = await page(session, query, PipelineRow.created_at, PipelineRow.id, part)
    steps = await _steps(session, [row.id for row in rows])
    return [Whole(row, steps[row.id]) for row in rows], following


async def want(session: AsyncSession, id: str, project: str, desired: Desired) -> Whole:
    """What the owner wants of all steps that are not over. Where it is so already, nothing changes.

    Raises NoSuchPipeline, Conflict.
    """
    whole = await get(session, id, project, lock=True)
    # What is being cancelled stays so.
    left = [step for step in _left(whole) if desired == Desired.CANCEL or step.desired != Desired.CANCEL]
    if not left and not (desired == Desired.CANCEL and any(s.phase == Phase.CANCELLED for s in whole.steps)):
        raise Conflict("all of its steps are over; `retry` starts those again that failed")
    for step in left:
        await jobs.want(session, step.id, project, desired)
    return whole


async def retry(session: AsyncSession, id: str, project: str) -> Whole:
    """Sends the steps that failed back to the queue; what succeeded is not done again.

    Raises NoSuchPipeline, Conflict.
    """
    whole = await get(session, id, project, lock=True)
    lost = hopeless(
        {str(step.step): {need["step"] for need in step.needs} for step in whole.steps if step.waiting},
        {str(step.step) for step in whole.steps if step.phase == Phase.CANCELLED},
    )
    failed = [step for step in whole.steps if step.phase == Phase.FAILED]
    again = [step for step in failed if step.step not in lost]
    if not failed:
        raise Conflict("no step of it has failed")
    if not again:
        raise Conflict("what failed waits for a step that was cancelled, and that is final; make a new pipeline")
    for step in again:
        await jobs.retry(session, step.id, project)
    return whole


async def delete(session: AsyncSession, id: str, project: str) -> list[str]:
    """Removes a pipeline whose steps are all over, and marks their jobs, whose ids it gives: the operator removes what
    belongs to them. Raises NoSuchPipeline, Conflict."""
    whole = await get(session, id, project, lock=True)
    if left := _left(whole):
        raise Conflict(
            f"its step `{left[0].step}` is {left[0].phase}; `cancel` it first, and delete it when it is over"
        )
    for step in whole.steps:
        step.pipeline_id = None
        await jobs.delete(session, step.id, project)
    await session.flush()
    await session.delete(whole.row)
    await idempotency.forget(session, id)
    return [step.id for step in whole.steps]


def _left(whole: Whole) -> list[JobRow]:
    return [step for step in whole.steps if Phase(step.phase) not in FINAL or step.retry_requested]


async def _steps(session: AsyncSession, ids: Sequence[str], *, lock: bool = False) -> dict[str, list[JobRow]]:
    """The jobs of each of the pipelines, in their order."""
    found: dict[str, list[JobRow]] = {id: [] for id in ids}
    # Locked in the order of their ids, as everybody does who locks several.
    query = select(JobRow).where(JobRow.pipeline_id.in_(ids)).order_by(JobRow.id)
    for row in await session.scalars(query.with_for_update() if lock else query):
        found[str(row.pipeline_id)].append(row)
    for steps in found.values():
        steps.sort(key=lambda step: (step.created_at, step.id))
    return found
