"""Idempotency keys: a create that is sent twice makes one thing."""

import hashlib
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from api.store.database import utcnow
from api.store.reports import insert_new
from api.store.tables import IdempotencyRow

LIFETIME = timedelta(hours=24)


class KeyReused(ValueError):
    """The key was used with another body."""


def fingerprint(route: str, body: bytes) -> str:
    """What makes two requests the same."""
    return hashlib.sha256(route.encode() + b"\n" + body).hexdigest()


async def find(session: AsyncSession, project: str, key: str, request_sha256: str) -> str | None:
    """The id of what the key has made, if it was used in the last 24 hours. Raises KeyReused."""
    row = await session.scalar(
        select(IdempotencyRow).where(
            IdempotencyRow.project_id == project,
            IdempotencyRow.key == key,
            IdempotencyRow.created_at > utcnow() - LIFETIME,
        )
    )
    if row is None:
        return None
    if row.request_sha256 != request_sha256:
        raise KeyReused("this Idempotency-Key was used with another body; use a new one")
    return row.resource_id


async def claim(session: AsyncSession, project: str, key: str, request_sha256: str, resource_id: str) -> str:
    """Takes the key for `resource_id`, in the transaction that makes it. Gives whose it is: `resource_id`, or the id
    of what a request that was quicker has made. Raises KeyReused."""
    now = utcnow()
    await session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at <= now - LIFETIME))
    row = {
        "project_id": project,
        "key": key,
        "request_sha256": request_sha256,
        "resource_id": resource_id,
        "created_at": now,
    }
    # Waits for another transaction that has inserted the same key and is not over.
    await (await session.connection()).run_sync(insert_new, IdempotencyRow, [row])
    return await find(session, project, key, request_sha256) or resource_id


async def forget(session: AsyncSession, resource_id: str) -> None:
    """Frees the key of a thing that is no more."""
    await session.execute(delete(IdempotencyRow).where(IdempotencyRow.resource_id == resource_id))
