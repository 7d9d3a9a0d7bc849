"""Several namespaces of one cluster behind the one port: each project's attempts run in its own.

The names of attempts begin with their namespace and a slash, but for the first one. What befalls one holds up no
other.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from api.domain.job import Reason
from api.domain.observation import Observation
from api.operator.cluster import ClusterError, Held, LogEnd
from api.operator.kubernetes import KubernetesCluster
from worker.contract.order import Input, Order
from worker.contract.spec import JobSpec

log = logging.getLogger(__name__)


class Namespaces:
    """All namespaces that attempts may run in."""

    def __init__(self, first: KubernetesCluster, others: Mapping[str, KubernetesCluster]) -> None:
        """`others`: by their names."""
        self._first, self._others = first, dict(others)

    def watch(self, ended: Callable[[str], None]) -> None:
        """Has `ended` called with the name of an attempt of which something changed, here without its namespace."""
        for cluster in (self._first, *self._others.values()):
            cluster.watch(ended)

    @property
    def trouble(self) -> str | None:
        """Why one of them is not followed at the moment; None: all are."""
        if self._first.trouble is not None:
            return self._first.trouble
        troubles = ((name, cluster.trouble) for name, cluster in self._others.items())
        return next((f"namespace {name}: {trouble}" for name, trouble in troubles if trouble is not None), None)

    async def look_anew(self) -> None:
        """Has what others did up to now be known. Raises ClusterError for the first namespace; of another that does not
        answer nothing counts as known until it does."""
        *others, first = await asyncio.gather(
            *(cluster.look_anew() for cluster in (*self._others.values(), self._first)), return_exceptions=True
        )
        if first is not None:
            raise first
        for (namespace, cluster), error in zip(self._others.items(), others, strict=True):
            if error is not None:
                log.warning("namespace %s does not answer: %s: %s", namespace, type(error).__name__, error)
                cluster.doubt()

    def order(self, name: str, job: str, attempt: int, spec: JobSpec, inputs: Mapping[str, Input]) -> Order:
        """The attempt's order, with its files as pods see them."""
        namespace, _, plain = name.rpartition("/")
        # Of one that is not named any more `ensure` tells.
        return self._others.get(namespace, self._first).order(plain, job, attempt, spec, inputs)

    async def ensure(self, name: str, order: Order, token: str, image: str | None = None, project: str = "") -> str:
        """Creates the attempt's objects, those that are missing. Raises CannotStart, Held, ClusterError."""
        cluster, plain = self._of(name)
        return await cluster.ensure(plain, order, token, image, project)

    async def observe(self, name: str, uid: str | None = None) -> Observation:
        """What is known of the attempt. Raises ClusterError while nothing is."""
        cluster, plain = self._of(name)
        return await cluster.observe(plain, uid)

    async def stop(self, name: str, grace: float) -> None:
        """Has the attempt end within `grace` seconds."""
        cluster, plain = self._of(name)
        await cluster.stop(plain, grace)

    async def logs(self, name: str) -> dict[int, LogEnd]:
        """The last 1 MiB of each rank's log, by rank."""
        cluster, plain = self._of(name)
        return await cluster.logs(plain)

    async def remove(self, name: str, force: bool = False) -> bool:
        """Removes all objects of an attempt that is over; False: call again."""
        cluster, plain = self._of(name)
        return await cluster.remove(plain, force)

    async def names(self) -> set[str]:
        """The names of all attempts of this installation that are known to have objects."""
        found = await self._first.names()
        for namespace, cluster in self._others.items():
            try:
                found |= {f"{namespace}/{name}" for name in await cluster.names()}
            except ClusterError as error:
                log.debug("namespace %s: %s", namespace, error)
        return found

    def _of(self, name: str) -> tuple[KubernetesCluster, str]:
        """Where the attempt of this name runs, and its name there. Raises Held: an admin may name that place again."""
        namespace, _, plain = name.rpartition("/")
        if not namespace:
            return self._first, plain
        if (cluster := self._others.get(namespace)) is None:
            raise Held(Reason.NAMESPACE_GONE, f"NAMESPACES does not name {namespace}, where it runs, any more")
        return cluster, plain
