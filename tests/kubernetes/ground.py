"""What tests of operators stand on: planes side by side in one namespace, proxies before them, and who watches all."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.credentials import Credentials
from tests.e2e.plane import wait_until
from tests.kubernetes.api_request import ApiRequest
from tests.kubernetes.ends import Births, births
from tests.kubernetes.faulty import FaultyApiServer
from tests.kubernetes.fixtures import AnyCluster
from tests.kubernetes.namespace import Namespace
from tests.kubernetes.observer import Observer
from tests.kubernetes.plane import Plane, operator_kubeconfig


@dataclass
class Ground:
    """A namespace in which several control planes may act, each with a database of its own."""

    cluster: AnyCluster
    namespace: Namespace
    databases: Callable[[], str]
    account: Path
    folder: Path
    births: Births
    observer: Observer

    @contextmanager
    def plane(self, name: str, before: FaultyApiServer | None = None, **settings: str) -> Iterator[Plane]:
        """A control plane that is not started yet, closed at the end. Its operator asks a proxy, where one is given."""
        account = self.account if before is None else self.behind(before)
        made = Plane(self.folder / name, self.cluster, self.namespace, self.databases, account, **settings)
        try:
            yield made
        finally:
            made.close()

    @contextmanager
    def proxy(self) -> Iterator[FaultyApiServer]:
        """A proxy with the rights of an operator, and no others."""
        with FaultyApiServer(Credentials.of(self.account)) as made:
            yield made

    def behind(self, proxy: FaultyApiServer) -> Path:
        """The configuration of an operator that asks a proxy."""
        return proxy.write_kubeconfig(self.folder / f"{proxy.url.rpartition(':')[2]}.conf")

    def left(self, job: str) -> list[str]:
        """What there is of a job's objects, as `kind/name`."""
        kinds, mine = "jobs,pods,secrets,services,networkpolicies", f"rlhf-operator/job={job}"
        return self.cluster.kubectl("-n", self.namespace.name, "get", kinds, "-l", mine, "-o", "name").split()

    def is_clear_of(self, *jobs: str) -> None:
        """Waits until no object of the jobs is left."""
        for job in jobs:
            wait_until(lambda job=job: not self.left(job), what=f"the end of all objects of {job}: {self.left(job)}")


@contextmanager
def ground(cluster: AnyCluster, namespace: Namespace, databases: Callable[[], str], folder: Path) -> Iterator[Ground]:
    """The ground of a module's tests."""
    account = operator_kubeconfig(cluster, namespace, folder)
    observer = Observer(namespace.store).start()
    try:
        with births(cluster, namespace.name) as born:
            yield Ground(cluster, namespace, databases, account, folder, born, observer)
    finally:
        observer.stop()
    assert observer.twice == []


def changing(request: ApiRequest) -> bool:
    """Matches what changes something."""
    return request.verb not in ("get", "list", "watch")


def named(request: ApiRequest) -> str:
    """The name of the object that is created or deleted."""
    return request.name or str(json.loads(request.body)["metadata"]["name"])
