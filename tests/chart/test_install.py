"""The chart on a real cluster: from nothing to a finished job, onwards, back, and away again."""

import contextlib
import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.chart.release import NAME, Release, release
from tests.e2e.plane import wait_until
from tests.kubernetes.fixtures import AnyCluster
from tests.kubernetes.namespace import Namespace, share
from tests.kubernetes.plane import rehearsal

# Each takes minutes, and the first build of the image as many.
pytestmark = pytest.mark.soak
LONG = 6000
"""Steps of a job that outlasts its test: 10 minutes."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of SQLite's volume: where pods may enter it."""
    made = Path(tempfile.mkdtemp(prefix="rlhf-data-"))
    share(made)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def reachable(cluster: AnyCluster, url: str) -> Iterator[str]:
    """The URL of a database that is reached by a socket's file, at an address that pods reach."""
    parts = urlsplit(url)
    file = Path(parse_qs(parts.query)["host"][0]) / ".s.PGSQL.5432"

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(file))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=copy, args=ends, daemon=True).start()

    with socket.create_server((cluster.host_address, 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        address = "{}:{}".format(*listener.getsockname())
        yield f"postgresql://{parts.username}@{address}{parts.path}"
        listener.shutdown(socket.SHUT_RDWR)


def pods(made: Release) -> set[str]:
    """The names of the API's pods."""
    return {*made.kubectl("get", "pods", "-l", "app.kubernetes.io/component=api", "-o", "name").split()}


def lives_through(made: Release) -> None:
    """From the installation to the end of the release, with a job that runs through all that comes between."""
    notes = made.install()
    assert f"helm test {NAME} -n {made.namespace}" in notes
    said = made.helm("test", NAME, "--logs", "--timeout", "3m")
    assert ": succeeded" in said
    client = made.client()
    job = client.jobs.create(rehearsal(LONG)).id
    wait_until(lambda: client.jobs.get(job).phase == "running", what="a job that runs")
    before = pods(made)
    made.upgrade(podAnnotations={"release": "two"})
    wait_until(lambda: before.isdisjoint(pods(made)), what="the end of the pods of before")
    made.helm("rollback", NAME, "1", "--wait", "--timeout", "4m")
    # The key is the one that was drawn first.
    after = made.client().jobs.get(job)
    assert (after.phase, after.attempt) == ("running", 1)
    made.helm("uninstall", NAME, "--wait", "--timeout", "4m")
    mine = ["-n", made.jobs.name, "get", "jobs,pods", "-l", f"rlhf-operator/job={job}", "-o", "name"]
    assert made.cluster.kubectl(*mine).split() == []


def test_with_sqlite_it_is_installed_upgraded_rolled_back_and_removed_around_a_job_that_runs(
    cluster: AnyCluster, namespace: Namespace, api_image: str, folder: Path
) -> None:
    with release(cluster, namespace, api_image, folder) as made:
        lives_through(made)
        kept = {f"secret/{NAME}-admin-key", f"persistentvolumeclaim/{NAME}-data", "persistentvolumeclaim/rlhf-store"}
        wait_until(lambda: made.left() <= kept, what=f"the end of all else: {made.left()}")
        assert kept <= made.left()


def test_with_postgresql_it_is_installed_upgraded_rolled_back_and_removed_around_a_job_that_runs(
    cluster: AnyCluster, namespace: Namespace, api_image: str, folder: Path, postgres: Callable[[], str]
) -> None:
    with (
        reachable(cluster, postgres()) as url,
        release(cluster, namespace, api_image, folder, replicas=2, database={"existingSecret": "db"}) as made,
    ):
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db"}, "stringData": {"url": url}}
        cluster.kubectl("-n", made.namespace, "apply", "-f", "-", input=json.dumps(secret))
        lives_through(made)
        kept = {f"secret/{NAME}-admin-key", "persistentvolumeclaim/rlhf-store"}
        wait_until(lambda: made.left() <= kept, what=f"the end of all else: {made.left()}")
        assert kept <= made.left()
