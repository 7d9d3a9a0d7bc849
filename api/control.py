"""What the routes stand on: one value with all that the control plane holds."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.folder import Store
from api.inputs import Resolver
from api.logs import Logs
from api.settings import Settings
from api.store.database import Database
from api.store.wakeups import Wakeups
from api.streams import Streams
from api.telemetry import Telemetry
from api.tokens import Tokens


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

    @classmethod
    def of(cls, settings: Settings) -> "ControlPlane":
        """Made from its settings; nothing is opened yet."""
        database = Database(settings.database)
        store = Store(settings.store_path)
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
        )


def _control(request: Request) -> ControlPlane:
    control: ControlPlane = request.app.state.control
    return control


Control = Annotated[ControlPlane, Depends(_control)]
