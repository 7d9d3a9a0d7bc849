"""The same control plane on both kinds of cluster, with what differs between them behind one small face."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from client import Client
from tests.e2e.plane import ControlPlane, control_plane
from tests.kubernetes.plane import operator_kubeconfig, running


@dataclass
class Place:
    """A control plane that runs.

    Attributes:
        left: what there still is of attempts on the cluster.
        kill: kills all of the control plane, and nothing of its attempts.
        start: starts it again on the same data, and returns when it is ready.
    """

    client: Client
    store: Path
    left: Callable[[], list[str]]
    kill: Callable[[], None]
    start: Callable[[], object]


@pytest.fixture(scope="module", params=["local", "kubernetes"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A control plane on each kind of cluster, for all tests of a module."""
    folder = tmp_path_factory.mktemp("place")
    if request.param == "local":
        with control_plane(folder / "data", LOCAL_JOBS="12", BACK_OFF="0.5") as plane:
            yield Place(plane.client, folder / "data" / "store", lambda: _folders(plane), plane.kill, plane.start)
        return
    given, namespace = request.getfixturevalue("cluster"), request.getfixturevalue("module_namespace")
    account = operator_kubeconfig(given, namespace, folder)
    databases = request.getfixturevalue("postgres")
    with running(folder, given, namespace, databases, account, LEASE="2") as pods:

        def kill() -> None:
            pods.operator.kill()
            pods.api.kill()

        yield Place(pods.client, namespace.store, pods.objects, kill, pods.start)


def _folders(plane: ControlPlane) -> list[str]:
    return [path.name for path in plane.data.glob("attempts/job-*")]
