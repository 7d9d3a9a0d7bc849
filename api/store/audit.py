"""Who changed what: a line for each change, written in the transaction that makes it."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from api.domain.access import Caller
from api.domain.job import Desired
from api.store.database import utcnow
from api.store.tables import AuditRow, Project

WISHES = {Desired.RUN: "resume", Desired.PAUSE: "pause", Desired.CANCEL: "cancel"}
"""What an owner's wish is called as an action, after `job.` or `pipeline.`."""


def note(session: AsyncSession, caller: Caller, action: str, target: str, **detail: Any) -> None:
    """Notes that the caller did `action`, such as `job.cancel`, to the thing of this id or name."""
    session.add(
        AuditRow(
            at=utcnow(),
            project_id=caller.project,
            key_id=caller.key,
            who=caller.name,
            action=action,
            target=target[:64],
            detail=detail,
        )
    )


async def listed(
    session: AsyncSession, *, project: str | None, key: str | None, target: str | None, before: int | None, limit: int
) -> Sequence[tuple[AuditRow, str | None]]:
    """Lines with their project's name (None: it is gone), the newest first."""
    query = select(AuditRow, Project.name).outerjoin(Project, Project.id == AuditRow.project_id)
    if project is not None:
        query = query.where(Project.name == project)
    if key is not None:
        query = query.where(AuditRow.key_id == key)
    if target is not None:
        query = query.where(AuditRow.target == target)
    if before is not None:
        query = query.where(AuditRow.id < before)
    rows = await session.execute(query.order_by(AuditRow.id.desc()).limit(limit))
    return [(row, name) for row, name in rows]
