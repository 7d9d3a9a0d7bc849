"""PostgreSQL as the control plane uses it: nothing waits for ever, and a connection that is lost is made anew."""

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import asyncpg
from sqlalchemy import event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import DisconnectionError, InvalidatePoolError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

# Milliseconds that a transaction may wait for its process, which in it waits for nothing but the database. A process
# that is frozen within one would hold its locks for ever: the leader's row, too.
_IDLE = 5000
# Seconds for a connection to be made, for one that was idle to show that it lives, and for a free one of the pool.
_CONNECT, _PING, _POOL = 5.0, 3.0, 10.0
# Seconds for which one that was used is not asked whether it lives: under load, that were a question for each answer.
_FRESH = 0.5
# Seconds after which a connection is made anew: what a name stands for changes, too.
_RECYCLE = 900
# Seconds more than the server gives a statement: it is there to say itself that it stopped one.
_SILENCE = 5.0
# Seconds between two looks for another server behind the name, while the one that is there takes no changes.
_ELSEWHERE = 5.0
# The server asks after a client of which it heard nothing, in seconds: firewalls forget quiet connections, and locks of
# a client that is gone are let go.
_ALIVE = {"tcp_keepalives_idle": "60", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3"}


# What asyncpg raises where a connection is lost. The last one does not say so: it is a connection that was cut between
# two messages, whose state nobody knows any more.
ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one process may ask of the server. Times are seconds; 0 is for ever."""

    connections: int = 15
    statement: float = 15.0
    """For one statement."""
    lock: float = 5.0
    """For one lock that somebody else holds."""
    idle: float = _IDLE / 1000
    """For a transaction in which nothing is asked."""
    apart: bool = False
    """Whether a third of the connections is for what only reads."""

    def shared(self) -> tuple["Limits", "Limits"]:
        """Those who read, and those who write: people wait behind no queue of workers' reports."""
        reads = max(1, self.connections // 3)
        return replace(self, connections=reads), replace(self, connections=self.connections - reads)


async def connect(url: URL, limits: Limits) -> "asyncpg.Connection[Any]":
    """A connection. Raises asyncpg's errors alone, also for a host that is not there."""
    settings = {
        "application_name": "rlhf-operator",
        "statement_timeout": _milliseconds(limits.statement),
        "lock_timeout": _milliseconds(limits.lock),
        "idle_in_transaction_session_timeout": _milliseconds(limits.idle),
        **_ALIVE,
    }
    patience = limits.statement + _SILENCE if limits.statement else None
    dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        return await asyncpg.connect(dsn, timeout=_CONNECT, command_timeout=patience, server_settings=settings)
    except OSError as error:
        said = str(error) or f"no connection was made in {_CONNECT:g} s"
        raise asyncpg.ClientCannotConnectError(said) from error


class Moves:
    """When it was last seen that the server takes no changes any more: connections of before lead to the wrong one."""

    def __init__(self) -> None:
        self.seen = -math.inf

    def note(self) -> bool:
        """It is seen now. Whether that is news: to a server that is only read, no connections are made each time."""
        if time.monotonic() - self.seen <= _ELSEWHERE:
            return False
        self.seen = time.monotonic()
        return True


def engine(url: URL, limits: Limits, moves: Moves | None = None) -> AsyncEngine:
    """A pool of connections. Pools of one server share `moves`: only who writes sees them."""
    made = create_async_engine(
        # SQLAlchemy would not take all that the driver takes of a URL: it hands on what it is given.
        "postgresql+asyncpg://",
        async_creator=partial(connect, url, limits),
        pool_size=limits.connections,
        max_overflow=0,
        pool_timeout=_POOL,
        pool_recycle=_RECYCLE,
    )
    _watch(made, moves or Moves())
    # Where a connection leads nowhere any more, its polite end would be waited for as long as a statement.
    dialect = made.sync_engine.dialect
    dialect.do_close = dialect.do_terminate  # type: ignore[method-assign]
    return made


def _watch(engine: AsyncEngine, moves: Moves) -> None:

    def connected(connection: Any, record: Any) -> None:
        record.info["made"] = time.monotonic()

    def checkout(connection: Any, record: Any, proxy: Any) -> None:
        if record.info["made"] < moves.seen:
            raise DisconnectionError("the server that it leads to took no changes")
        # SQLAlchemy's own ping would wait as long as TCP does for a connection that a firewall has forgotten.
        if time.monotonic() - record.info.pop("used", math.inf) > _FRESH:
            try:
                connection.run_async(lambda driver: driver.execute("SELECT 1", timeout=_PING))
            except ERRORS as error:
                raise InvalidatePoolError(str(error)) from error

    def checkin(connection: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    def failed(context: ExceptionContext) -> BaseException | None:
        cause = context.original_exception
        if isinstance(cause, TimeoutError):
            # The server did not even say that it stopped the statement.
            context.is_disconnect = True
            return OperationalError(context.statement, None, cause, connection_invalidated=True)
        if isinstance(cause.__cause__, asyncpg.InternalClientError):
            context.is_disconnect = True
        if getattr(cause, "sqlstate", None) == "25006" and moves.note():
            # After a failover, connections to the server that led before are still good for reading.
            context.is_disconnect = True
        return None

    event.listen(engine.sync_engine, "connect", connected)
    event.listen(engine.sync_engine, "checkout", checkout)
    event.listen(engine.sync_engine, "checkin", checkin)
    event.listen(engine.sync_engine, "handle_error", failed)


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
