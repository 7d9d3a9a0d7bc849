"""The leader's row: who may act, in which epoch, until when by the database's own clock."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select, text, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from api.store.database import Database
from api.store.tables import LeaderRow
from worker.contract.protocol import storable

_ROW = 1
_LONGEST = 2000


class NotLeader(Exception):
    """Somebody else leads, or nobody any more: whoever hears this must change nothing."""


@dataclass(frozen=True, slots=True)
class Led:
    """How the operators stand."""

    now: bool = True
    """One holds a lease."""
    trouble: str | None = None
    """Why it does not hear what happens on the cluster, or why the last that tried to lead could not."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to act: one holder, in one epoch. Each takeover makes a new epoch."""

    holder: str
    epoch: int


async def clock(session: AsyncSession) -> float:
    """The database's own clock, in seconds since 1970."""
    return await (await session.connection()).run_sync(_clock)


def _clock(connection: Connection) -> float:
    if connection.dialect.name == "sqlite":
        query: Select[Any] = select(text("(julianday('now') - 2440587.5) * 86400.0"))
    else:
        query = select(func.extract("epoch", func.clock_timestamp()))
    return float(connection.execute(query).scalar_one())


async def acquire(database: Database, holder: str, seconds: float, *, alone: bool = False) -> Lease | None:
    """The lease for `seconds`, or None while somebody else's runs.

    `alone`: the caller knows that no other control plane is up (it holds the data folder's lock), so a lease that is
    still running was left by one that is dead.
    """
    try:
        async with database.transaction() as session:
            row = await session.get(LeaderRow, _ROW, with_for_update=True)
            now = await clock(session)
            if row is None:
                session.add(LeaderRow(id=_ROW, holder=holder, epoch=1, expires_at=now + seconds))
                return Lease(holder, 1)
            if row.expires_at > now and not alone:
                return None
            row.holder, row.epoch, row.expires_at = holder, row.epoch + 1, now + seconds
            return Lease(holder, row.epoch)
    except IntegrityError:
        # Another made the first row at the same moment.
        return None


async def renew(database: Database, lease: Lease, seconds: float, trouble: str | None = None) -> None:
    """Makes the lease run for `seconds` from now. Raises NotLeader, also where it ran out: it may have been missed.

    `trouble`: why what happens on the cluster is not heard at the moment.
    """
    async with database.transaction() as session:
        now = await clock(session)
        renewed = await session.execute(
            update(LeaderRow)
            .where(LeaderRow.id == _ROW, LeaderRow.holder == lease.holder, LeaderRow.epoch == lease.epoch)
            .where(LeaderRow.expires_at > now)
            .values(expires_at=now + seconds, trouble=_kept(trouble))
            .returning(LeaderRow.epoch)
        )
        if renewed.first() is None:
            raise NotLeader(f"{lease.holder} does not lead any more")


async def release(database: Database, lease: Lease, trouble: str | None = None) -> None:
    """Lets the next one lead at once; nothing happens if somebody else leads already.

    `trouble`: why this one cannot lead.
    """
    async with database.transaction() as session:
        await session.execute(
            update(LeaderRow)
            .where(LeaderRow.id == _ROW, LeaderRow.holder == lease.holder, LeaderRow.epoch == lease.epoch)
            .values(expires_at=0.0, trouble=_kept(trouble))
        )


def _kept(trouble: str | None) -> str | None:
    """Words of others, in a form that any database takes: a lease must not be lost over them."""
    return str(storable(trouble[:_LONGEST])) if trouble is not None else None


async def require(session: AsyncSession, lease: Lease) -> None:
    """`held`, as a part of a session's transaction."""
    await (await session.connection()).run_sync(held, lease)


def led(connection: Connection) -> Led:
    """Whether an operator holds a lease now, and what troubles it."""
    row = connection.execute(select(LeaderRow.expires_at, LeaderRow.trouble).where(LeaderRow.id == _ROW)).one_or_none()
    return Led(row.expires_at > _clock(connection), row.trouble) if row is not None else Led(now=False)


def held(connection: Connection, lease: Lease) -> None:
    """Raises NotLeader unless the lease is in force; nobody else can take it before this transaction is over."""
    row = connection.execute(
        select(LeaderRow.holder, LeaderRow.epoch, LeaderRow.expires_at)
        .where(LeaderRow.id == _ROW)
        .with_for_update(read=True)
    ).one_or_none()
    if row is None or (row.holder, row.epoch) != (lease.holder, lease.epoch) or row.expires_at <= _clock(connection):
        raise NotLeader(f"{lease.holder} does not lead any more")
