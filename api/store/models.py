"""Registered models: rows here, weights in the store. The operator registers them."""

import re
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncSession

from api.store import jobs
from api.store.pages import Slice, page
from api.store.tables import ModelRow
from worker.contract.order import Input

_NAMED = re.compile(r"([a-z0-9][a-z0-9._-]{0,62})(?:@([1-9][0-9]{0,8}))?")


class NoSuchModel(LookupError):
    """There is no such model."""


async def get(session: AsyncSession, wanted: str, project: str, *, lock: bool = False) -> ModelRow:
    """A project's model by its id, its `NAME` (the newest version) or `NAME@version`. Raises NoSuchModel."""
    query = select(ModelRow).where(ModelRow.project_id == project)
    row = await session.scalar((query.with_for_update() if lock else query).where(ModelRow.id == wanted))
    if row is not None:
        return row
    found = _NAMED.fullmatch(wanted)
    if found is None:
        raise NoSuchModel(wanted)
    query = query.where(ModelRow.name == found[1])
    if found[2]:
        query = query.where(ModelRow.version == int(found[2]))
    # A LoRA job hands over both kinds as one version: the whole model is what its name means.
    query = query.order_by(ModelRow.version.desc(), ModelRow.kind.desc()).limit(1)
    row = await session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NoSuchModel(wanted)
    return row


def reference_of(row: ModelRow) -> str:
    """What a spec calls exactly this model; the newest version of its name may be another tomorrow."""
    return f"models/{row.name}@{row.version}" if row.kind == "model" else f"models/{row.id}"


def as_input(row: ModelRow) -> Input:
    """The model as what a job's reference leads to."""
    return Input(reference=reference_of(row), kind="model", location=row.path, sha256=row.sha256)


async def handed_over(session: AsyncSession, job: str, kind: str) -> ModelRow | None:
    """What a job has handed over under this kind of output; None: nothing, or it was deleted."""
    return await session.scalar(select(ModelRow).where(ModelRow.job_id == job, ModelRow.kind == kind))


async def listed(
    session: AsyncSession, project: str, name: str | None, kind: str | None, job: str | None, part: Slice
) -> tuple[Sequence[ModelRow], str | None]:
    """A page of a project's models, and the cursor of the next. Raises BadCursor."""
    query = select(ModelRow).where(ModelRow.project_id == project)
    if name is not None:
        query = query.where(ModelRow.name == name)
    if kind is not None:
        query = query.where(ModelRow.kind == kind)
    if job is not None:
        query = query.where(ModelRow.job_id == job)
    return await page(session, query, ModelRow.created_at, ModelRow.id, part)


def known(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Those of `ids` that are models."""
    return set(connection.scalars(select(ModelRow.id).where(ModelRow.id.in_(ids))))


async def delete(session: AsyncSession, wanted: str, project: str) -> ModelRow:
    """Removes the row; the caller removes the folder after the commit. Raises NoSuchModel, Conflict."""
    row = await get(session, wanted, project, lock=True)
    if users := await jobs.unfinished_users(session, project, reference_of(row), handed_over_by=row.job_id):
        raise jobs.Conflict(f"the model is used by {', '.join(users[:5])}; delete it when they have ended")
    await session.delete(row)
    return row
