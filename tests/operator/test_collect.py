"""What is taken in of an attempt that is over."""

from dataclasses import replace
from pathlib import Path

from api.domain.job import Phase, Reason
from api.domain.observation import Observation
from api.operator.local import LocalCluster
from api.store.database import Database
from tests.operator.conftest import STAND_IN, Plane


class Speechless(LocalCluster):
    """A cluster on which nothing is left of an attempt but how it ended."""

    async def observe(self, name: str, uid: str | None = None) -> Observation:
        return replace(await super().observe(name, uid), termination=None)


async def test_an_attempt_that_ended_well_without_its_last_words_is_made_once_more(
    database: Database, data: Path
) -> None:
    cluster = Speechless(data, (data / "store").as_uri(), data / "worker-url", command=STAND_IN)
    async with Plane(database, data, cluster=cluster) as plane:
        job = await plane.post(metadata={"seconds": "0"})
        row = await plane.reaches(job, Phase.FAILED)
        assert (row.attempt, row.reason) == (2, Reason.WORKER_ERROR)
        assert "its last words are lost: what it made is not known" in row.message
