"""Brings a database to the newest migration, at every start."""

import logging
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

import api
from api.store.database import Database

# Any number, the same for every process: "one migrates at a time".
_ADVISORY_LOCK = 7_305_113_201


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration; the same for the control plane and for `alembic` by hand."""
    given = Config()
    given.set_main_option("script_location", str(Path(api.__file__).parent / "migrations"))
    given.set_main_option("path_separator", "os")
    given.attributes["connection"] = connection
    return given


async def migrate(database: Database) -> None:
    """Runs the migrations that the database lacks; of several processes that start at once, one does it."""
    # Alembic tells of itself at every start; only what goes wrong is of interest.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    async with database.engine.begin() as connection:
        if not database.sqlite:
            # Held to the transaction's end; on SQLite, BEGIN IMMEDIATE does the same.
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        await connection.run_sync(_upgrade)


def _upgrade(connection: Connection, revision: Any = "head") -> None:
    command.upgrade(config(connection), revision)
