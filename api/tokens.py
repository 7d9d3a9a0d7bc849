"""Attempts' tokens: signed for one job and one attempt, and good for as long as that attempt is."""

import secrets
import time
from dataclasses import dataclass

import jwt
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from api.store.database import Database, utcnow
from api.store.ids import new_id
from api.store.tables import SigningKeyRow

_ALGORITHM = "HS256"
# Seconds for which a key that was not there is not asked for again, and how many such names are remembered.
_MISSED = 5.0
_MISSES = 1000
# Seconds for which the newest key is signed with before it is asked whether there is a newer one: the older is still
# valid then.
_KEY_KEPT = 30.0


class BadToken(ValueError):
    """A token that none of our keys has signed."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who a token speaks for."""

    job: str
    attempt: int


@dataclass(frozen=True, slots=True)
class _Newest:
    """The key that is signed with, and when it was read, by the monotonic clock."""

    id: str
    secret: bytes
    read_at: float


class Tokens:
    """Issues and verifies. Keys are rows, read once and again when a token names one that is not known yet."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._keys: dict[str, bytes] = {}
        self._missed: dict[str, float] = {}
        self._newest: _Newest | None = None

    async def issue(self, job: str, attempt: int) -> str:
        """A token for one attempt, signed with the newest key; the first call makes the first key."""
        if self._newest is None or time.monotonic() - self._newest.read_at > _KEY_KEPT:
            async with self._database.transaction() as session:
                row = await _newest(session) or _add(session)
            self._keys[row.id] = row.secret
            self._newest = _Newest(row.id, row.secret, time.monotonic())
        key = self._newest
        return jwt.encode({"job": job, "attempt": attempt}, key.secret, _ALGORITHM, headers={"kid": key.id})

    async def verify(self, token: str) -> Claim:
        """Who the token speaks for. Raises BadToken."""
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            if not isinstance(key_id, str):
                raise BadToken("the token names no key")
            secret = self._keys.get(key_id) or await self._look(key_id)
            if secret is None:
                raise BadToken("the token's key is not one of ours, or is retired")
            claims = jwt.decode(token, secret, [_ALGORITHM], options={"require": ["job", "attempt"]})
        except jwt.InvalidTokenError as error:
            raise BadToken(f"the token is not one of ours: {error}") from None
        job, attempt = claims["job"], claims["attempt"]
        if not isinstance(job, str) or not isinstance(attempt, int):
            raise BadToken("the token's claims are not a job and an attempt")
        return Claim(job, attempt)

    async def _look(self, key_id: str) -> bytes | None:
        """A key that is not known here. A row is committed before its key signs: what is missing is nobody's."""
        now = time.monotonic()
        if now - self._missed.get(key_id, -_MISSED) < _MISSED:
            return None
        secret = (await self._read()).get(key_id)
        if secret is None:
            if len(self._missed) >= _MISSES:
                self._missed.clear()
            self._missed[key_id] = now
        return secret

    async def _read(self) -> dict[str, bytes]:
        async with self._database.reading() as session:
            rows = await session.scalars(select(SigningKeyRow).where(SigningKeyRow.retired_at.is_(None)))
            self._keys = {row.id: row.secret for row in rows}
        return self._keys


async def _newest(session: AsyncSession) -> SigningKeyRow | None:
    query = select(SigningKeyRow).where(SigningKeyRow.retired_at.is_(None))
    return (await session.scalars(query.order_by(SigningKeyRow.created_at.desc()).limit(1))).first()


def _add(session: AsyncSession) -> SigningKeyRow:
    row = SigningKeyRow(id=new_id("key"), secret=secrets.token_bytes(32), created_at=utcnow(), retired_at=None)
    session.add(row)
    return row
