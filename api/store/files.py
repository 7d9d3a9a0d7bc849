"""Uploaded data files: rows here, bytes in the store."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncSession

from api.store import jobs
from api.store.database import utcnow
from api.store.pages import Slice, page
from api.store.tables import FileRow


class NoSuchFile(LookupError):
    """There is no file of this id."""


async def add(
    session: AsyncSession,
    *,
    id: str,
    project: str,
    filename: str,
    purpose: str,
    kind: str,
    rows: int,
    bytes: int,
    sha256: str,
    path: str,
) -> FileRow:
    """Registers a file whose bytes are in the store."""
    row = FileRow(
        id=id,
        project_id=project,
        filename=filename,
        purpose=purpose,
        kind=kind,
        rows=rows,
        bytes=bytes,
        sha256=sha256,
        path=path,
        created_at=utcnow(),
    )
    session.add(row)
    await session.flush()
    return row


async def get(session: AsyncSession, id: str, project: str) -> FileRow:
    """One file of a project. Raises NoSuchFile."""
    row = await session.scalar(select(FileRow).where(FileRow.id == id, FileRow.project_id == project))
    if row is None:
        raise NoSuchFile(id)
    return row


async def listed(
    session: AsyncSession, project: str, purpose: str | None, part: Slice
) -> tuple[Sequence[FileRow], str | None]:
    """A page of a project's files, and the cursor of the next. Raises BadCursor."""
    query = select(FileRow).where(FileRow.project_id == project)
    if purpose is not None:
        query = query.where(FileRow.purpose == purpose)
    return await page(session, query, FileRow.created_at, FileRow.id, part)


def known(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Those of `ids` that are files."""
    return set(connection.scalars(select(FileRow.id).where(FileRow.id.in_(ids))))


async def delete(session: AsyncSession, id: str, project: str) -> FileRow:
    """Removes the row; the caller removes the bytes after the commit. Raises NoSuchFile, Conflict."""
    # The lock waits for a job that is just being created with this file, and keeps others from it.
    row = await session.scalar(select(FileRow).where(FileRow.id == id, FileRow.project_id == project).with_for_update())
    if row is None:
        raise NoSuchFile(id)
    if users := await jobs.unfinished_users(session, project, f"files/{id}"):
        raise jobs.Conflict(f"the file is used by {', '.join(users[:5])}; delete it when they have ended")
    await session.delete(row)
    return row
