"""Projects: what belongs together, who may see it, and how much of the cluster it may use."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import exists, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from api.store.database import DEFAULT_PROJECT, utcnow
from api.store.ids import new_id
from api.store.jobs import Conflict
from api.store.pages import Slice, page
from api.store.tables import ApiKeyRow, FileRow, JobRow, ModelRow, PipelineRow, Project


class NoSuchProject(LookupError):
    """There is no project of this name."""


class OverQuota(Exception):
    """The project may store no more."""


@dataclass(frozen=True, slots=True)
class Quota:
    """How much a project may have at a time; None: as much as there is.

    Attributes:
        jobs: active ones; more wait in the queue.
        accelerators: that its active jobs ask for together.
        bytes: of its files and models in the store.
    """

    jobs: int | None = None
    accelerators: int | None = None
    bytes: int | None = None


async def create(session: AsyncSession, name: str, quota: Quota, namespace: str | None = None) -> Project:
    """A new project, whose attempts run in `namespace` (None: where those of all others do). Raises Conflict."""
    row = Project(id=new_id("proj"), name=name, created_at=utcnow(), namespace=namespace)
    limit(row, quota)
    session.add(row)
    try:
        await session.flush()
    except IntegrityError:
        raise Conflict(f"there is a project {name!r} already") from None
    return row


def limit(row: Project, quota: Quota) -> None:
    """Sets what a project may have."""
    row.max_jobs, row.max_accelerators, row.max_bytes = quota.jobs, quota.accelerators, quota.bytes


async def get(session: AsyncSession, name: str, *, lock: bool = False) -> Project:
    """One project, by its name. Raises NoSuchProject."""
    query = select(Project).where(Project.name == name)
    row = await session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NoSuchProject(name)
    return row


async def of(session: AsyncSession, id: str) -> Project:
    """One project, by the id that a key or a job has."""
    return (await session.scalars(select(Project).where(Project.id == id))).one()


async def listed(session: AsyncSession, only: str | None, part: Slice) -> tuple[Sequence[Project], str | None]:
    """A page of projects, and the cursor of the next; `only`: the one of this id. Raises BadCursor."""
    query = select(Project)
    if only is not None:
        query = query.where(Project.id == only)
    return await page(session, query, Project.created_at, Project.id, part)


async def stored(session: AsyncSession, id: str) -> int:
    """The bytes of a project's files and models."""
    total = 0
    for table in (FileRow, ModelRow):
        total += (
            await session.scalar(select(func.coalesce(func.sum(table.bytes), 0)).where(table.project_id == id)) or 0
        )
    return total


async def require_room(session: AsyncSession, id: str, size: int) -> None:
    """Raises OverQuota unless the project may store so many more bytes. Holds its row until the transaction is over, so
    that two writes are not both the last that fits."""
    row = (await session.scalars(select(Project).where(Project.id == id).with_for_update())).one()
    if row.max_bytes is not None and (there := await stored(session, id)) + size > row.max_bytes:
        raise OverQuota(
            f"the project {row.name!r} stores {there} of the {row.max_bytes} bytes that it may, and this is {size} "
            "more: delete files or models, or ask an admin for more"
        )


async def delete(session: AsyncSession, name: str) -> Project:
    """Removes a project that nothing belongs to any more; its keys go too. Raises NoSuchProject, Conflict."""
    row = await get(session, name, lock=True)
    if row.id == DEFAULT_PROJECT:
        raise Conflict("the default project stays: it is where calls without a key go")
    for table, what in ((JobRow, "jobs"), (PipelineRow, "pipelines"), (FileRow, "files"), (ModelRow, "models")):
        if await session.scalar(select(exists().where(table.project_id == row.id))):
            raise Conflict(f"the project still has {what}; delete them first")
    for key in await session.scalars(select(ApiKeyRow).where(ApiKeyRow.project_id == row.id)):
        await session.delete(key)
    await session.flush()
    await session.delete(row)
    return row
