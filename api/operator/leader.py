"""Leading: one operator acts at a time, and one that slept finds that it may not."""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable

from api.store import operations_leader
from api.store.database import Database
from api.store.operations_leader import Lease, NotLeader
from api.store.trouble import sentence

log = logging.getLogger(__name__)


class Leader:
    """This operator's claim. `seconds` is how long a lease runs; it is renewed at a third of that.

    `alone`: no other control plane can be up (SQLite, whose data folder is locked), so a lease left by a dead one is
    taken at once.
    """

    def __init__(self, database: Database, *, seconds: float = 15.0, alone: bool = False) -> None:
        self.holder = f"{socket.gethostname()[:80]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._database = database
        self._seconds = seconds
        self._alone = alone
        self._until = 0.0
        self._told = ""

    async def acquire(self) -> Lease | None:
        """The lease, or None while somebody else leads or the database does not answer."""
        asked = time.monotonic()
        try:
            lease = await operations_leader.acquire(self._database, self.holder, self._seconds, alone=self._alone)
        except Exception as error:  # drivers have errors of their own; it is asked for again
            self._tell(f"the operator waits: {sentence(error)}")
            return None
        self._tell("")
        if lease is not None:
            # From when we asked, so that we never believe in it for longer than the database does.
            self._until = asked + self._seconds
            log.info("%s leads, epoch %d", lease.holder, lease.epoch)
        return lease

    @property
    def left(self) -> float:
        """Seconds that the lease certainly still runs, by a clock that nobody sets."""
        return self._until - time.monotonic()

    async def keep(self, lease: Lease, trouble: Callable[[], str | None] = lambda: None) -> None:
        """Renews the lease until that fails for as long as it runs. Returns when it is lost.

        `trouble`: asked for what keeps this one from hearing of the cluster; it is recorded for all to read.
        """
        while True:
            await asyncio.sleep(min(self._seconds / 3, max(0.0, self.left)))
            asked = time.monotonic()
            try:
                await asyncio.wait_for(
                    operations_leader.renew(self._database, lease, self._seconds, trouble()), max(0.1, self.left)
                )
                self._until = asked + self._seconds
            except NotLeader:
                log.warning("%s lost the lease of epoch %d", lease.holder, lease.epoch)
                return
            except Exception as error:  # drivers have errors of their own; it is tried while the lease runs
                log.warning("the lease was not renewed: %s", sentence(error))
                if self.left <= 0:
                    return

    async def release(self, lease: Lease, trouble: str | None = None) -> None:
        """Lets the next one lead at once. `trouble`: why this one cannot."""
        self._until = 0.0
        try:
            await asyncio.wait_for(operations_leader.release(self._database, lease, trouble), 5.0)
        except Exception as error:  # no matter: we are leaving
            log.warning("the lease was not released, and will run out: %s", sentence(error))

    def _tell(self, said: str) -> None:
        """Says it once, though it is asked for every second."""
        if said and said != self._told:
            log.warning(said)
        elif self._told and not said:
            log.info("the operator waits no more: the database takes changes again")
        self._told = said
