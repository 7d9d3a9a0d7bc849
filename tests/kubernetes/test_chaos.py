"""People submit, and whatever serves them is killed again and again: nothing is lost, and nothing runs twice."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client.records import Job
from tests.cluster.cluster import Cluster
from tests.e2e.plane import story, wait_until
from tests.kubernetes.namespace import Namespace
from tests.kubernetes.plane import operator_kubeconfig, rehearsal
from tests.kubernetes.replicas import Replicas, replicas
from tests.postgres import Server

# Seconds between two deaths, and between two jobs of one person.
_DEATHS, _JOBS = 4.0, 5.0


class People:
    """Two who submit, look and list for as long as they are let."""

    def __init__(self, control: Replicas, at_most: int, *, patience: float = 15.0) -> None:
        """`at_most`: so many jobs in all, though a busy machine takes longer. `patience` is a client's usual one."""
        self._control, self._at_most, self._patience = control, at_most, patience
        self._over = threading.Event()
        self.acknowledged: list[str] = []
        self.errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._works, name=f"person-{n}") for n in range(2)]

    def __enter__(self) -> "People":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _works(self) -> None:
        with self._control.client(patience=self._patience) as client:
            while not self._over.is_set() and len(self.acknowledged) < self._at_most:
                try:
                    job = client.jobs.create(rehearsal(6)).id
                    self.acknowledged.append(job)
                    client.jobs.get(job)
                    for _ in itertools.islice(client.jobs.all(), 20):
                        pass
                except Exception as error:
                    self.errors.append(error)
                self._over.wait(_JOBS)


def ended(control: Replicas, jobs: list[str]) -> list[Job]:
    """The jobs, once all are over."""
    with control.client() as client:

        def over() -> list[Job] | None:
            found = [client.jobs.get(job) for job in jobs]
            return found if all(job.phase in ("succeeded", "failed", "cancelled") for job in found) else None

        return wait_until(over, seconds=240, what="the end of all jobs") or []


def nothing_is_lost_or_made_twice(control: Replicas, people: People) -> None:
    """All that was promised was done, once; nothing else was made."""
    assert people.errors == []
    found = ended(control, people.acknowledged)
    with control.client() as client:
        wrong = [story(client, job.id) for job in found if (job.phase, job.attempt) != ("succeeded", 1)]
        assert not wrong, "\n".join(wrong)
        assert sorted(job.id for job in client.jobs.all()) == sorted(people.acknowledged)
    print(f"{len(found)} jobs")


@pytest.fixture
def account(cluster: Cluster, namespace: Namespace, tmp_path: Path) -> Path:
    """Who the operators are."""
    return operator_kubeconfig(cluster, namespace, tmp_path)


@pytest.fixture
def control(
    cluster: Cluster, namespace: Namespace, postgres: Callable[[], str], account: Path, tmp_path: Path
) -> Iterator[Replicas]:
    with replicas(tmp_path / "replicas", cluster, namespace, postgres, account) as made:
        yield made


@pytest.fixture
def on_own_server(
    cluster: Cluster, namespace: Namespace, server: Server, account: Path, tmp_path: Path
) -> Iterator[Replicas]:
    """On a database that nobody else needs."""
    with replicas(tmp_path / "replicas", cluster, namespace, server.url, account) as made:
        yield made


def turns(seconds: float) -> Iterator[int]:
    """Counts the deaths, some seconds between two, for as long as that."""
    over = time.monotonic() + seconds
    for turn in itertools.count():
        threading.Event().wait(_DEATHS)
        if time.monotonic() > over:
            return
        yield turn


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(60, id="a minute"),
        pytest.param(600, id="ten minutes", marks=[pytest.mark.soak, pytest.mark.timeout(2400)]),
    ],
)
def test_of_two_apis_and_two_operators_one_of_each_is_killed_every_few_seconds(control: Replicas, seconds: int) -> None:
    with People(control, at_most=seconds // 2) as people:
        for turn in turns(seconds):
            for process in (control.apis[turn % 2], control.operators[turn % 2]):
                process.kill()
                process.start()
            # The other one is there before it is its turn, as a disruption budget sees to on a cluster.
            control.lives()
    nothing_is_lost_or_made_twice(control, people)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(30, id="half a minute"),
        pytest.param(300, id="five minutes", marks=[pytest.mark.soak, pytest.mark.timeout(1500)]),
    ],
)
def test_the_database_is_killed_and_started_every_few_seconds(
    on_own_server: Replicas, server: Server, seconds: int
) -> None:
    # How long PostgreSQL takes to recover is not ours; everybody waits for it.
    with People(on_own_server, at_most=seconds // 2, patience=60) as people:
        for _ in turns(seconds):
            server.kill()
            server.start()
            on_own_server.lives()
    nothing_is_lost_or_made_twice(on_own_server, people)
