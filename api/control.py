"""What the routes stand on: one value with all that the control plane holds."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.folder import FolderStore
from api.inputs import Resolver
from api.logs import Logs
from api.operator.site import Site
from api.settings import Settings
from api.store.database import Database
from api.store.postgres import Limits
from api.store.wakeups import Wakeups
from api.stores import Store
from api.streams import Streams
from api.telemetry import Telemetry
from api.tokens import Tokens
from api.trust import Trust


class Pulse:
    """Whether the operator's loop turns, where this process runs one."""

    def __init__(self) -> None:
        self._turned: Callable[[], float] | None = None

    def watch(self, turned: Callable[[], float]) -> None:
        """From now on `turned` says when the loop last turned, by the monotonic clock."""
        self._turned = turned

    @property
    def silence(self) -> float:
        """Seconds since the loop turned; 0 without an operator."""
        return time.monotonic() - self._turned() if self._turned is not None else 0.0


@dataclass(frozen=True)
class ControlPlane:
    """The parts of one running control plane."""

    settings: Settings
    database: Database
    wakeups: Wakeups
    tokens: Tokens
    store: Store
    streams: Streams
    telemetry: Telemetry
    resolver: Resolver
    logs: Logs
    pulse: Pulse
    trust: Trust
    site: Site | None = None
    """Where attempts run on Kubernetes; None: they are processes of this machine."""

    @classmethod
    def of(cls, settings: Settings, *, operates: bool = False) -> "ControlPlane":
        """Made from its settings; nothing is opened yet. `operates`: it serves the operator alone."""
        database = Database(settings.database, limits(settings, operates=operates))
        store = open_store(settings)
        return cls(
            settings=settings,
            database=database,
            wakeups=Wakeups(database),
            tokens=Tokens(database),
            store=store,
            streams=Streams(database),
            telemetry=Telemetry(),
            resolver=Resolver(settings, database, store),
            logs=Logs(settings.data, store),
            pulse=Pulse(),
            trust=Trust(database),
        )


def open_store(settings: Settings) -> Store:
    """The store that the settings name; nothing is asked of it yet."""
    if not settings.in_bucket:
        return FolderStore(settings.store_path, settings.store_url)
    # What speaks to buckets is slow to import.
    from api.bucket import BucketStore

    return BucketStore(settings.store_url)


# Connections of a pool, from which on those who read have some apart.
_PARTED = 9


def limits(settings: Settings, *, operates: bool) -> Limits:
    """What the operator, or an API, may ask of PostgreSQL."""
    if operates:
        return Limits(settings.operator_pool, settings.operator_statement_timeout, settings.lock_timeout)
    # Of a few connections, a third would be one, and the one request that takes long would keep all others waiting.
    apart = settings.database_pool >= _PARTED
    return Limits(settings.database_pool, settings.statement_timeout, settings.lock_timeout, apart=apart)


# Asynchronous, though it waits for nothing: FastAPI would call it in a thread, at every request.
async def _control(request: Request) -> ControlPlane:
    control: ControlPlane = request.app.state.control
    return control


Control = Annotated[ControlPlane, Depends(_control)]
