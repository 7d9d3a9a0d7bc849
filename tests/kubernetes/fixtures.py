"""A real cluster for all tests, started when the first of them needs it, and namespaces and a control plane on it."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, at_hand
from tests.cluster.credentials import Credentials
from tests.cluster.given import KUBECONFIG, GivenCluster
from tests.cluster.machine import ClusterError
from tests.kubernetes.faulty import FaultyApiServer
from tests.kubernetes.namespace import Namespace, create, hurry, is_gone, remove
from tests.kubernetes.plane import Plane, operator_kubeconfig, running

AnyCluster = Cluster | GivenCluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[AnyCluster]:
    """The cluster of TEST_KUBECONFIG, or the one that `python -m tests.cluster up` left up, or one of this session."""
    with ExitStack() as ends:
        try:
            given = os.environ.get(KUBECONFIG)
            found = GivenCluster(Path(given)) if given else ends.enter_context(at_hand(say=lambda _: None))
        except ClusterError as error:
            pytest.fail(str(error), pytrace=False)
        yield found


@pytest.fixture(scope="session")
def _namespaces(cluster: AnyCluster) -> Iterator[list[str]]:
    """The names of those that were removed and may not be gone yet: all are, before the session ends."""
    leaving: list[str] = []
    yield leaving
    begin = hurried = time.monotonic()
    while left := [name for name in leaving if not is_gone(cluster, name)]:
        now = time.monotonic()
        if now > begin + 60:
            pytest.fail(f"These namespaces are still there a minute after their end was asked for: {', '.join(left)}.")
        if now > hurried + 7:  # it looks 5 s after each change
            for name in left:
                hurry(cluster, name)
            hurried = now
        time.sleep(0.2)


def _namespace(cluster: AnyCluster, store: Path, leaving: list[str]) -> Iterator[Namespace]:
    made = create(cluster, store)
    yield made
    cluster.heal()
    for earlier in leaving.copy():
        if is_gone(cluster, earlier):
            leaving.remove(earlier)
        else:
            hurry(cluster, earlier)
    remove(cluster, made.name)
    leaving.append(made.name)


@pytest.fixture
def namespace(
    cluster: AnyCluster, _namespaces: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Namespace]:
    """A namespace for one test; its objects go in the background. Whatever the test disturbed is mended."""
    yield from _namespace(cluster, tmp_path_factory.mktemp("store"), _namespaces)


@pytest.fixture
def faulty(cluster: AnyCluster) -> Iterator[FaultyApiServer]:
    """A proxy before the API server, as its admin, that fails as it is told."""
    with FaultyApiServer(Credentials.of(cluster.kubeconfig)) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def module_namespace(
    cluster: AnyCluster, _namespaces: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Namespace]:
    """A namespace that the tests of a module share."""
    yield from _namespace(cluster, tmp_path_factory.mktemp("store"), _namespaces)


@pytest.fixture(scope="module")
def plane(
    cluster: AnyCluster,
    module_namespace: Namespace,
    postgres: Callable[[], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Plane]:
    """A control plane that the tests of a module share. Its operator has the role that is shipped, and no more."""
    folder = tmp_path_factory.mktemp("plane")
    account = operator_kubeconfig(cluster, module_namespace, folder)
    with running(folder, cluster, module_namespace, postgres, account) as made:
        yield made
