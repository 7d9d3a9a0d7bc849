"""What the control plane's command does once, and ends."""

import contextlib
from collections.abc import AsyncIterator

from api.data_folder import CannotStart, make_folder
from api.domain.access import Role
from api.serve import open_database, usable
from api.settings import Settings
from api.store import keys, projects
from api.store.database import Database


async def migrated(settings: Settings) -> None:
    """Brings the database to this release's tables. Raises CannotStart."""
    async with _database(settings):
        pass


async def create_key(settings: Settings, project: str, name: str, role: Role) -> str:
    """Makes an API key, and gives it: nobody can later. Raises CannotStart."""
    key = keys.fresh()
    async with _database(settings) as database, database.transaction() as session:
        try:
            row = await projects.get(session, project)
        except projects.NoSuchProject:
            raise CannotStart(f"there is no project {project!r}") from None
        await keys.create(session, key, project=row.id, name=name, role=role)
    return key


@contextlib.asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Database]:
    """The database, with this release's tables. SQLite's may be in use: its lock sees to turns. Raises CannotStart."""
    make_folder(settings.data)
    database = Database(settings.database)
    try:
        await open_database(database)
        with usable(database):
            yield database
    finally:
        await database.dispose()
