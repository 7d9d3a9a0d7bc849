"""API keys: random, shown once, kept as a hash."""

import hashlib
import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncSession

from api.domain.access import Caller, Role
from api.store.database import utcnow
from api.store.ids import new_id
from api.store.pages import Slice, page
from api.store.tables import ApiKeyRow, Project

PREFIX = "rlhf_"
"""What a key begins with, so that people and scanners for secrets know one when they see it."""
# A key that is used all the time need not be written all the time.
_USED = timedelta(minutes=1)
FROM_FILE = "key-of-the-file"


class NoSuchKey(LookupError):
    """There is no key of this id."""


def fresh() -> str:
    """A new key: 256 random bits, so that a hash without salt or stretching keeps it."""
    return PREFIX + secrets.token_urlsafe(32)


def is_strong(key: str) -> bool:
    """Whether a key that was made elsewhere has the form of one that nobody guesses."""
    return re.fullmatch(rf"{PREFIX}[A-Za-z0-9_-]{{32,200}}", key) is not None


def digest(key: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


async def create(
    session: AsyncSession,
    key: str,
    *,
    project: str,
    name: str,
    role: Role,
    expires_at: datetime | None = None,
    created_by: str | None = None,
    id: str | None = None,
) -> ApiKeyRow:
    """Stores a key. `project` is an id, which must exist."""
    row = ApiKeyRow(
        id=id or new_id("key"),
        project_id=project,
        name=name,
        role=role.value,
        sha256=digest(key),
        created_at=utcnow(),
        created_by=created_by,
        expires_at=expires_at,
        last_used_at=None,
        revoked_at=None,
    )
    session.add(row)
    await session.flush()
    return row


async def take_from_file(session: AsyncSession, key: str, project: str) -> None:
    """Makes `key` the admin's key that a file holds; the one that the file held before is good no more."""
    row = await session.get(ApiKeyRow, FROM_FILE, with_for_update=True)
    if row is None:
        await create(session, key, project=project, name="admin-key-file", role=Role.ADMIN, id=FROM_FILE)
    elif row.sha256 != digest(key):
        row.sha256, row.created_at, row.last_used_at = digest(key), utcnow(), None


class Found(NamedTuple):
    """Who holds a key."""

    caller: Caller
    unnoted: bool
    """It was not used for a while: `use` should be called."""


def find(connection: Connection, key: str, now: datetime) -> Found | None:
    """Who holds the key; None: it is unknown, expired or revoked."""
    row = connection.execute(
        select(ApiKeyRow.id, ApiKeyRow.name, ApiKeyRow.role, ApiKeyRow.project_id, ApiKeyRow.last_used_at).where(
            ApiKeyRow.sha256 == digest(key), *_good(now)
        )
    ).one_or_none()
    if row is None:
        return None
    unnoted = row.last_used_at is None or row.last_used_at < now - _USED
    return Found(Caller(row.project_id, Role(row.role), row.id, row.name), unnoted)


def good(connection: Connection, id: str, now: datetime) -> bool:
    """Whether the key of this id may still be used."""
    return connection.scalar(select(ApiKeyRow.id).where(ApiKeyRow.id == id, *_good(now))) is not None


def use(connection: Connection, id: str, now: datetime) -> None:
    """Notes that a key was used."""
    connection.execute(update(ApiKeyRow).where(ApiKeyRow.id == id).values(last_used_at=now))


async def listed(session: AsyncSession, part: Slice) -> tuple[Sequence[tuple[ApiKeyRow, str]], str | None]:
    """A page of keys, each with its project's name, and the cursor of the next. Raises BadCursor."""
    rows, following = await page(session, select(ApiKeyRow), ApiKeyRow.created_at, ApiKeyRow.id, part)
    names = {id: name for id, name in await session.execute(select(Project.id, Project.name))}
    return [(row, names[row.project_id]) for row in rows], following


async def revoke(session: AsyncSession, id: str) -> ApiKeyRow:
    """Ends a key for good; from the commit on no replica takes it. May be repeated. Raises NoSuchKey."""
    row = await session.get(ApiKeyRow, id, with_for_update=True)
    if row is None:
        raise NoSuchKey(id)
    row.revoked_at = row.revoked_at or utcnow()
    return row


def _good(now: datetime) -> tuple[ColumnElement[bool], ...]:
    return (ApiKeyRow.revoked_at.is_(None), ApiKeyRow.expires_at.is_(None) | (ApiKeyRow.expires_at > now))
