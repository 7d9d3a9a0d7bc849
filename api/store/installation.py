"""This installation: its name, the same for every process of the control plane, and where its attempts run."""

from sqlalchemy import func, select

from api.store.database import Database
from api.store.tables import AttemptRow, InstallationRow


class Elsewhere(Exception):
    """Attempts still have their objects in another place than this operator would look for them."""


async def name(database: Database) -> str:
    """The name, which fits into a label of Kubernetes."""
    async with database.reading() as session:
        found: str = (await session.scalars(select(InstallationRow.name))).one()
        return found


async def runs_at(database: Database, place: str) -> None:
    """Records where an operator has attempts run. Raises Elsewhere where there are some in another place: it would take
    them for deleted, and start them a second time.
    """
    async with database.transaction() as session:
        row = (await session.scalars(select(InstallationRow).with_for_update())).one()
        if row.place not in (None, place):
            left = select(func.count()).select_from(AttemptRow).where(AttemptRow.cleaned.is_(False))
            if count := await session.scalar(left):
                raise Elsewhere(
                    f"attempts still run in {row.place} ({count}), and this operator would look in {place}: start it "
                    "there again, and pause or cancel their jobs first"
                )
        row.place = place
