"""More reports at once than can be taken in: those beyond are refused at once, so that the others are taken in.

Each that waits for the database until its time is over has cost as much as one that was stored. Where all of them
wait so long, none is stored: a process that is a little too slow would do nothing at all. Workers send again what is
refused.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from api import errors
from api.telemetry import Telemetry

# Some for each connection to the database, and few enough that the last of them does not wait too long.
MOST = 128


class Crowd:
    """Lets `most` requests in at once, and answers the others with 503."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, most: int = MOST) -> None:
        self.app, self.most, self.inside = app, most, 0
        self._crowded = telemetry.reports.labels("crowded")
        self._refusal = errors.response(
            503, "too many report at this moment; send it again", headers={"Retry-After": "2"}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.inside >= self.most:
            self._crowded.inc()
            await self._refusal(scope, receive, send)
            return
        self.inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.inside -= 1
