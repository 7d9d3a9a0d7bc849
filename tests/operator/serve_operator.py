"""An operator in a process of its own, for tests that kill it: `python -m tests.operator.serve_operator URL DATA`."""

import asyncio
import sys
from pathlib import Path

from api.store.database import Database
from tests.operator.conftest import Plane


async def main(url: str, data: Path) -> None:
    database = Database(url)
    # Short, so that on PostgreSQL a killed one's lease is over soon.
    async with Plane(database, data, places=3, lease=0.5, alone=database.sqlite):
        print("up", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
