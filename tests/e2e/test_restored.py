"""A back-up taken while a job runs, by the words of the guide, and what goes on from it."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from client import ApiError, Client
from tests.e2e.plane import ControlPlane, wait_until
from tests.images.postgres import programs
from worker.stages.rehearse import Walk

GUIDE = Path(__file__).parents[2] / "docs" / "backup.md"
STEPS = 160


def commands(heading: str) -> str:
    """The commands of the guide under a heading."""
    section = GUIDE.read_text().partition(f"\n**{heading}**")[2]
    found = re.search(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


@dataclass
class Site:
    """A control plane whose database is backed up and restored by the guide's own commands."""

    kind: str
    folder: Path
    databases: Callable[[], str]
    plane: ControlPlane = field(init=False)
    url: str = ""

    def __post_init__(self) -> None:
        self.url = self.databases() if self.kind == "PostgreSQL" else ""
        self.plane = self._plane()

    def _plane(self) -> ControlPlane:
        settings = {"DATABASE_URL": self.url} if self.url else {}
        return ControlPlane(self.folder / "rlhf-data", BACK_OFF="0.2", **settings)

    def run(self, script: str) -> None:
        """Commands of the guide, beside the data folder."""
        environment = {
            **os.environ,
            "PATH": f"{programs() / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DATABASE_URL": self.url.replace("+asyncpg", ""),
        }
        done = subprocess.run(
            ["bash", "-euc", script], cwd=self.folder, env=environment, capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def back_up_database(self) -> None:
        self.run(commands(f"{self.kind}: the database"))

    def back_up_store(self) -> None:
        self.run(commands("The store, after it"))

    def restore_database(self) -> None:
        """Into a new one, as after a loss."""
        if self.url:
            self.url = self.databases()
        self.run(commands(f"{self.kind}: back into a new database"))

    def restore_store(self) -> None:
        self.run(commands("The store, back"))

    def lose_everything(self) -> None:
        """Control plane and workers are gone."""
        self.plane.close()

    def again(self) -> Client:
        """Starts it on what there is now."""
        self.plane = self._plane()
        return self.plane.start().client


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path, postgres: Callable[[], str]) -> Iterator[Site]:
    made = Site(request.param, tmp_path, postgres)
    made.plane.start()
    yield made
    made.plane.close()


def submitted(client: Client, steps: int = STEPS, **fields: object) -> str:
    stage = {"type": "rehearse", "steps": steps, "seconds_per_step": 0.05, "output": True, **fields}
    return client.jobs.create({"name": "walk", "stage": stage, "checkpoint": {"every_steps": 4}}).id


def reaches(client: Client, job: str, step: int, attempt: int = 1) -> None:
    def there() -> bool:
        found = client.jobs.get(job)
        return found.attempt == attempt and found.progress is not None and found.progress.step >= step

    wait_until(there, what=f"step {step} of attempt {attempt}")


def unbroken() -> list[tuple[int, float]]:
    """The losses of a walk that nothing disturbs."""
    walk = Walk(random.Random(17))
    return [(step, walk.advance()) for step in range(1, STEPS + 1)]


def losses(client: Client, job: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.jobs.metrics(job, name="train/loss")]


def resumed_at(client: Client, job: str) -> int:
    """The step that the job went on from after what was lost: none that reached the store is done again."""
    resumed = max(event.step or 0 for event in client.jobs.events(job) if event.type == "Resumed")
    assert resumed >= 28
    return resumed


@pytest.mark.parametrize("site", ["SQLite", "PostgreSQL"], indirect=True)
def test_a_job_goes_on_where_the_store_is_newer_than_the_database_of_a_back_up(site: Site) -> None:
    client = site.plane.client
    job = submitted(client)
    reaches(client, job, 10)
    told = losses(client, job)
    site.back_up_database()
    # What comes after the back-up is another attempt: the database of then knows nothing of it, nor of its checkpoints.
    os.kill(site.plane.attempt_pids(job)[0], signal.SIGKILL)
    reaches(client, job, 30, attempt=2)
    site.lose_everything()
    site.restore_database()
    client = site.again()
    done = client.jobs.wait(job, timeout=120)
    assert (done.phase, done.attempt) == ("succeeded", 2)
    # Points that were told after the back-up and before the newest checkpoint are lost, and no others.
    resumed = resumed_at(client, job)
    assert [point for point in losses(client, job) if point[0] > resumed] == unbroken()[resumed:]
    assert {*told} <= {*losses(client, job)} <= {*unbroken()}
    assert client.models.find("walk").job_id == job


@pytest.mark.parametrize("site", ["SQLite"], indirect=True)
def test_a_job_that_no_attempt_is_known_of_goes_on_where_it_was(site: Site) -> None:
    client = site.plane.client
    before = submitted(client)
    reaches(client, before, 1)
    job = submitted(client)
    assert client.jobs.get(job).phase == "queued"
    site.back_up_database()
    client.jobs.cancel(before)
    reaches(client, job, 30)
    site.lose_everything()
    site.restore_database()
    client = site.again()
    client.jobs.cancel(before)
    done = client.jobs.wait(job, timeout=120)
    assert (done.phase, done.attempt) == ("succeeded", 1)
    assert losses(client, job) == unbroken()[resumed_at(client, job) :]


@pytest.mark.parametrize("site", ["SQLite"], indirect=True)
def test_a_job_goes_on_from_the_beginning_where_the_store_is_older_than_the_database(site: Site) -> None:
    client = site.plane.client
    job = submitted(client)
    reaches(client, job, 10)
    site.back_up_store()
    gone = submitted(client, steps=1)
    reaches(client, job, 30)
    client.jobs.pause(job)
    client.jobs.wait(gone, timeout=60)
    wait_until(lambda: client.jobs.get(job).phase == "paused", what="a paused job")
    site.lose_everything()
    shutil.rmtree(site.folder / "rlhf-data" / "store")
    site.restore_store()
    client = site.again()
    client.jobs.resume(job)
    assert client.jobs.wait(job, timeout=120).phase == "succeeded"
    [resumed] = [event.step for event in client.jobs.events(job) if event.type == "Resumed"]
    assert 8 <= resumed < 30
    # What it told after that is told again.
    assert losses(client, job) == unbroken()
    # A model that is gone is still listed, and refused to a job that would begin with it.
    assert client.models.find("walk@1").job_id == gone
    with pytest.raises(ApiError, match=r"stage\.model: .*it needs config\.json"):
        submitted(client, model="models/walk@1")
