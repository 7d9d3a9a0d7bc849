"""Jobs as their owners see and change them. The operator's own transactions are elsewhere."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, RowMapping, Select, func, select, type_coerce
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncSession

from api.domain.job import FINAL, Desired, Phase, Reason
from api.store import events, idempotency
from api.store.database import utcnow
from api.store.ids import new_id
from api.store.pages import Slice, page
from api.store.tables import AttemptRow, FileRow, JobRow, ModelRow
from worker.contract.order import Input
from worker.contract.spec import JobSpec, Metadata


class NoSuchJob(LookupError):
    """There is no job of this id, or it was deleted."""


class Conflict(ValueError):
    """What is asked for makes no sense in the job's phase."""


class Stale(ValueError):
    """The job is not any more as the caller knew it."""


class InputGone(ValueError):
    """A file or model was deleted between its resolution and the job's creation. `path` is its place in the spec."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


@dataclass(frozen=True, slots=True)
class Filters:
    """Which jobs a list holds; empty: all."""

    phases: Sequence[Phase] = ()
    stages: Sequence[str] = ()
    name: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    pipeline: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A job's place in a pipeline: its step, and what that takes of others, each {path, step, output, job}."""

    pipeline: str
    step: str
    needs: Sequence[dict[str, str]]
    message: str
    """What it waits for."""


@dataclass(frozen=True, slots=True)
class Key:
    """An Idempotency-Key, with the hash of the request it came with."""

    value: str
    request_sha256: str


async def create(
    session: AsyncSession,
    spec: JobSpec,
    inputs: dict[str, Input],
    *,
    project: str,
    key: Key | None = None,
    cloned_from: str | None = None,
    place: Place | None = None,
) -> tuple[JobRow, bool]:
    """A new job, or the one that `key` has made before; and whether it is new. With a `place` that has needs it waits
    for them. Raises KeyReused, InputGone."""
    id = new_id("job")
    if key is not None:
        owner = await idempotency.claim(session, project, key.value, key.request_sha256, id)
        if owner != id:
            return await get(session, owner, project), False
    await _hold_inputs(session, inputs, project)
    now = utcnow()
    needs = list(place.needs) if place is not None else []
    document = spec.model_dump(mode="json")
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    row = JobRow(
        id=id,
        project_id=project,
        name=spec.title,
        stage=spec.stage.type,
        spec=document,
        spec_sha256=hashlib.sha256(canonical.encode()).hexdigest(),
        inputs={path: given.model_dump() for path, given in inputs.items()},
        metadata_=dict(spec.metadata),
        priority=spec.queue.priority,
        cloned_from=cloned_from,
        pipeline_id=place.pipeline if place is not None else None,
        step=place.step if place is not None else None,
        needs=needs,
        created_at=now,
        desired=Desired.RUN.value,
        retry_requested=False,
        deleted_at=None,
        generation=1,
        waiting=bool(needs),
        phase=Phase.QUEUED.value,
        phase_since=now,
        reason=Reason.AWAITING_STEP.value if needs else None,
        fault=None,
        message=place.message if place is not None else "",
        attempt=0,
        not_before=None,
        started_at=None,
        finished_at=None,
        progress=None,
        activity=None,
        event_count=0,
    )
    session.add(row)
    await session.flush()
    origin = f", a clone of {cloned_from}" if cloned_from else ""
    origin += f", step {place.step} of {place.pipeline}" if place is not None else ""
    await events.add(session, row, "Created", f"{spec.stage.type} job {row.name}{origin}", source="api", at=now)
    return row, True


async def get(session: AsyncSession, id: str, project: str, *, lock: bool = False) -> JobRow:
    """One job of a project. Raises NoSuchJob."""
    query = select(JobRow).where(JobRow.id == id, JobRow.project_id == project, JobRow.deleted_at.is_(None))
    row = await session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NoSuchJob(id)
    return row


def require(connection: Connection, id: str, project: str) -> None:
    """Raises NoSuchJob unless the project has such a job."""
    query = select(JobRow.id).where(JobRow.id == id, JobRow.project_id == project, JobRow.deleted_at.is_(None))
    if connection.scalar(query) is None:
        raise NoSuchJob(id)


def newest_attempt(connection: Connection, id: str, project: str) -> int:
    """The number of a job's newest attempt. Raises NoSuchJob."""
    query = select(JobRow.attempt).where(JobRow.id == id, JobRow.project_id == project, JobRow.deleted_at.is_(None))
    attempt = connection.scalar(query)
    if attempt is None:
        raise NoSuchJob(id)
    return int(attempt)


def look(connection: Connection, id: str, project: str) -> tuple[RowMapping, Sequence[RowMapping]]:
    """The columns of one job of a project, and of the models that it has handed over. Raises NoSuchJob."""
    # Columns and not mapped objects: this is what everybody polls.
    table, models = JobRow.__table__, ModelRow.__table__
    wanted = select(table).where(table.c.id == id, table.c.project_id == project, table.c.deleted_at.is_(None))
    row = connection.execute(wanted).mappings().one_or_none()
    if row is None:
        raise NoSuchJob(id)
    if row["phase"] != Phase.SUCCEEDED:
        return row, ()
    query = select(models).where(models.c.job_id == id).order_by(models.c.kind.desc())
    return row, connection.execute(query).mappings().all()


async def listed(
    session: AsyncSession, project: str, filters: Filters, part: Slice
) -> tuple[Sequence[JobRow], str | None]:
    """A page of a project's jobs, and the cursor of the next. Raises BadCursor."""
    query: Select[JobRow] = select(JobRow).where(JobRow.project_id == project, JobRow.deleted_at.is_(None))
    if filters.phases:
        query = query.where(JobRow.phase.in_([phase.value for phase in filters.phases]))
    if filters.stages:
        query = query.where(JobRow.stage.in_(filters.stages))
    if filters.name is not None:
        query = query.where(JobRow.name == filters.name)
    if filters.pipeline is not None:
        query = query.where(JobRow.pipeline_id == filters.pipeline)
    for entry, value in filters.metadata.items():
        query = query.where(_has_entry(session, entry, value))
    return await page(session, query, JobRow.created_at, JobRow.id, part)


def _has_entry(session: AsyncSession, key: str, value: str) -> ColumnElement[bool]:
    """Whether a job's metadata has this entry."""
    if session.get_bind().dialect.name != "sqlite":
        # As one entry within the whole, which an index helps with; all values are text.
        holds: ColumnElement[bool] = type_coerce(JobRow.metadata_, JSONB).contains({key: value})
        return holds
    # SQLite compares a path's key with the document's as it is written there, `é` as `\u00e9`: paths find not all keys.
    entries = func.json_each(JobRow.metadata_).table_valued("key", "atom")
    return select(1).select_from(entries).where(entries.c.key == key, entries.c.atom == value).exists()


async def outputs(session: AsyncSession, jobs: Sequence[JobRow]) -> dict[str, list[ModelRow]]:
    """The models that each of the jobs has handed over."""
    done = [job.id for job in jobs if job.phase == Phase.SUCCEEDED]
    found: dict[str, list[ModelRow]] = {job.id: [] for job in jobs}
    if done:
        query = select(ModelRow).where(ModelRow.job_id.in_(done)).order_by(ModelRow.kind.desc())
        for row in await session.scalars(query):
            found[row.job_id].append(row)
    return found


async def change(
    session: AsyncSession,
    id: str,
    project: str,
    *,
    name: str | None = None,
    metadata: Metadata | None = None,
    priority: int | None = None,
    generation: int | None = None,
) -> JobRow:
    """Changes what is given. Raises NoSuchJob, and Stale unless the job is of `generation` (None: any)."""
    row = await get(session, id, project, lock=True)
    _check(row, generation)
    before = (row.name, row.metadata_, row.priority)
    row.name = name if name is not None else row.name
    row.metadata_ = dict(metadata) if metadata is not None else row.metadata_
    row.priority = priority if priority is not None else row.priority
    if (row.name, row.metadata_, row.priority) != before:
        row.generation += 1
    return row


async def want(session: AsyncSession, id: str, project: str, desired: Desired, generation: int | None = None) -> JobRow:
    """What the owner wants from now on: run (resume), pause, cancel. Where it is so already, nothing changes.

    Raises NoSuchJob, Conflict, Stale.
    """
    row = await get(session, id, project, lock=True)
    _check(row, generation)
    phase = Phase(row.phase)
    if phase == Phase.CANCELLED and desired == Desired.CANCEL:
        return row
    # A failed job that is to be retried has its way before it again, and may be held back from it.
    if phase in FINAL and not row.retry_requested:
        hint = {Phase.FAILED: "; `retry` starts it again"}.get(phase, "; `clone` makes a new one")
        raise Conflict(f"the job is {phase}, and that is final{hint}")
    if row.desired == desired:
        return row
    if row.desired == Desired.CANCEL:
        raise Conflict("the job is being cancelled; `clone` makes a new one")
    row.desired = desired.value
    row.generation += 1
    word = {Desired.RUN: "ResumeRequested", Desired.PAUSE: "PauseRequested", Desired.CANCEL: "CancelRequested"}[desired]
    await events.add(session, row, word, f"asked for while {phase}", source="api")
    return row


async def retry(session: AsyncSession, id: str, project: str, generation: int | None = None) -> JobRow:
    """Sends a failed job back to the queue. Raises NoSuchJob, Conflict, Stale."""
    row = await get(session, id, project, lock=True)
    _check(row, generation)
    if row.phase != Phase.FAILED:
        hint = "; `clone` makes a new one" if Phase(row.phase) in FINAL else "; only a failed job can be retried"
        raise Conflict(f"the job is {row.phase}{hint}")
    if row.retry_requested and row.desired == Desired.CANCEL:
        raise Conflict("the job is being cancelled; `clone` makes a new one")
    if not row.retry_requested:
        row.retry_requested = True
        row.desired = Desired.RUN.value
        row.generation += 1
        await events.add(session, row, "RetryRequested", "a failed job is sent back to the queue", source="api")
    return row


async def delete(session: AsyncSession, id: str, project: str, generation: int | None = None) -> None:
    """Marks a final job; the operator removes what belongs to it. Raises NoSuchJob, Conflict, Stale."""
    row = await get(session, id, project, lock=True)
    _check(row, generation)
    if row.pipeline_id is not None:
        raise Conflict(f"the job is the step `{row.step}` of {row.pipeline_id}; delete the whole pipeline")
    if Phase(row.phase) not in FINAL or row.retry_requested:
        raise Conflict(f"the job is {row.phase}; `cancel` it first, and delete it when it has ended")
    row.deleted_at = utcnow()
    row.generation += 1
    await idempotency.forget(session, id)


async def attempts(session: AsyncSession, id: str) -> Sequence[AttemptRow]:
    """All attempts, oldest first."""
    return (await session.scalars(select(AttemptRow).where(AttemptRow.job_id == id).order_by(AttemptRow.number))).all()


async def by_phase(session: AsyncSession) -> dict[str, int]:
    """How many jobs are in each phase; deleted ones are not counted."""
    query = select(JobRow.phase, func.count()).where(JobRow.deleted_at.is_(None)).group_by(JobRow.phase)
    found = {phase.value: 0 for phase in Phase}
    for phase, count in await session.execute(query):
        found[phase] = count
    return found


async def unfinished_users(
    session: AsyncSession, project: str, reference: str, handed_over_by: str | None = None
) -> list[str]:
    """The ids of the project's jobs, not final, one of whose inputs was resolved to `reference`, or that wait for what
    the job `handed_over_by` hands over."""
    unfinished = JobRow.phase.not_in([phase.value for phase in FINAL])
    query = select(JobRow.id, JobRow.inputs, JobRow.needs, JobRow.waiting).where(
        unfinished, JobRow.project_id == project
    )
    return [
        row.id
        for row in await session.execute(query)
        if any(given["reference"] == reference for given in row.inputs.values())
        or (row.waiting and any(need["job"] == handed_over_by for need in row.needs))
    ]


async def _hold_inputs(session: AsyncSession, inputs: dict[str, Input], project: str) -> None:
    """Keeps the files and models that the inputs name from being deleted until this transaction is over."""
    for path, given in inputs.items():
        _, _, name = given.reference.partition("/")
        if given.kind == "file":
            held = await session.scalar(
                select(FileRow.id).where(FileRow.id == name, FileRow.project_id == project).with_for_update(read=True)
            )
        elif given.kind == "model":
            query = select(ModelRow.id).where(ModelRow.project_id == project)
            name, _, version = name.partition("@")
            if version:
                named = (ModelRow.name == name, ModelRow.version == int(version), ModelRow.kind == "model")
                query = query.where(*named)
            else:
                query = query.where(ModelRow.id == name)
            held = await session.scalar(query.with_for_update(read=True))
        else:
            continue
        if held is None:
            raise InputGone(path)


def _check(row: JobRow, generation: int | None) -> None:
    if generation is not None and row.generation != generation:
        raise Stale(f"the job has changed meanwhile: its generation is {row.generation}, not {generation}")
