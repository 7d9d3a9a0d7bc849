"""This installation's name: made with the database, and the same for every process of the control plane."""

from sqlalchemy import select

from api.store.database import Database
from api.store.tables import InstallationRow


async def name(database: Database) -> str:
    """The name, which fits into a label of Kubernetes."""
    async with database.reading() as session:
        found: str = (await session.scalars(select(InstallationRow.name))).one()
        return found
