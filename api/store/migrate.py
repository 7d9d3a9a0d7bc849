"""Brings a database to the newest migration, at every start."""

import logging
import re
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

import api
from api.store import postgres
from api.store.database import Database
from api.store.trouble import Trouble, trouble

# Any number, the same for every process: "one migrates at a time".
_ADVISORY_LOCK = 7_305_113_201
# A migration takes as long as it takes; one that is frozen lets the next one go.
_LIMITS = postgres.Limits(connections=1, statement=0.0, lock=0.0, idle=60.0)
# A migration that waits for a table keeps all others waiting for it behind itself: so it waits for seconds, lets them
# go, and comes again.
_LOCK, _TRIES, _LONGEST = "3s", 20, 10.0
_NUMBER = re.compile(r"\d{4}")
log = logging.getLogger(__name__)


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration; the same for the control plane and for `alembic` by hand."""
    given = Config()
    given.set_main_option("script_location", str(Path(api.__file__).parent / "migrations"))
    given.set_main_option("path_separator", "os")
    given.attributes["connection"] = connection
    return given


async def migrate(database: Database) -> None:
    """Runs the migrations that the database lacks; of several processes that start at once, one does it.

    A database that a later release has migrated is left as it is: this release works on it (docs/operations.md).
    """
    # Alembic tells of itself at every start; only what goes wrong is of interest.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if database.sqlite:
        # BEGIN IMMEDIATE is what the advisory lock is on PostgreSQL.
        async with database.engine.begin() as connection:
            while await connection.run_sync(_upgrade):
                pass
        return
    engine = postgres.engine(database.url, _LIMITS)
    try:
        again = AsyncRetrying(
            retry=retry_if_exception(lambda error: trouble(error) is Trouble.LOCKED),
            stop=stop_after_attempt(_TRIES),
            wait=wait_random_exponential(multiplier=0.2, max=_LONGEST),
            before_sleep=_tell,
            reraise=True,
        )
        while await again(_in_turn, engine):
            pass
    finally:
        await engine.dispose()


async def _in_turn(engine: AsyncEngine) -> bool:
    """The next migration in one transaction, to whose end the lock is held: what fails has changed nothing.

    One at a time, since each keeps the tables that it has locked to its end, and the work that is under way may have
    what the next one needs. Gives whether there are more.
    """
    async with engine.begin() as connection:
        key = {"key": _ADVISORY_LOCK}
        if not await connection.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), key):
            log.info("another process migrates the database; waiting for it")
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), key)
        await connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK}'"))
        return await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> bool:
    """The next migration that is missing; gives whether there are more."""
    given = config(connection)
    newest = ScriptDirectory.from_config(given).get_current_head() or ""
    [stands] = MigrationContext.configure(connection).get_current_heads() or ("",)
    if _NUMBER.fullmatch(stands) and stands > newest:
        log.warning("a later release has migrated the database to %s, past %s: it is used as it is", stands, newest)
        return False
    if stands == newest:
        return False
    command.upgrade(given, "+1")
    [stands] = MigrationContext.configure(connection).get_current_heads()
    return bool(stands != newest)


def _tell(call: RetryCallState) -> None:
    log.warning("others hold what a migration needs; nothing is changed, and it is tried again")
