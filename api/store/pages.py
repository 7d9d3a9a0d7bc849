"""Keyset pages: by creation time and id, so that what is inserted meanwhile moves nothing."""

import base64
import binascii
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple, Protocol, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

Order = Literal["created_at", "-created_at"]


class BadCursor(ValueError):
    """An `after` that no page gave."""


class Dated(Protocol):
    """A row that pages can hold."""

    id: str
    created_at: datetime


Row = TypeVar("Row", bound=Dated)


class Slice(NamedTuple):
    """Which part of a list is asked for."""

    limit: int
    after: str | None
    order: Order = "-created_at"


async def page(
    session: AsyncSession,
    query: Select[Row],
    created_at: InstrumentedAttribute[datetime],
    id: InstrumentedAttribute[str],
    part: Slice,
) -> tuple[Sequence[Row], str | None]:
    """The rows of one part, and the cursor of the next (None: this is the last). Raises BadCursor."""
    key = tuple_(created_at, id)
    if part.after is not None:
        at = decode(part.after)
        query = query.where(key > at if part.order == "created_at" else key < at)
    if part.order == "created_at":
        query = query.order_by(created_at, id)
    else:
        query = query.order_by(created_at.desc(), id.desc())
    rows = (await session.scalars(query.limit(part.limit + 1))).all()
    more = len(rows) > part.limit
    rows = rows[: part.limit]
    return rows, encode(rows[-1].created_at, rows[-1].id) if more else None


def encode(created_at: datetime, id: str) -> str:
    """A cursor. It says nothing that is to be relied on."""
    return base64.urlsafe_b64encode(f"{created_at.isoformat()} {id}".encode()).decode().rstrip("=")


def decode(cursor: str) -> tuple[datetime, str]:
    """What `encode` was given. Raises BadCursor."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
        at, id = text.split(" ")
        given = datetime.fromisoformat(at)
        # In UTC, as a database compares it: a date at either end of the calendar has no such time.
        created_at = given.astimezone(UTC)
    except (ValueError, OverflowError, binascii.Error):
        raise BadCursor("write what the page before gave as `next`") from None
    if given.tzinfo is None or "\x00" in id:
        raise BadCursor("write what the page before gave as `next`")
    return created_at, id
