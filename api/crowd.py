"""More reports at once than can be taken in: those beyond are refused at once, so that the others are taken in.

Each that waits for the database until its time is over has cost as much as one that was stored. Where all of them
wait so long, none is stored: a process that is a little too slow would do nothing at all. Workers send again what is
refused.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import errors
from api.telemetry import Telemetry

# Some for each connection to the database, and few enough that the last of them does not wait too long.
MOST = 128
_SAID, _AGAIN = "too many report at this moment; send it again", {"Retry-After": "2"}


class Crowd:
    """Lets `most` requests in at once, and answers the others with 503.

    A request is in once it has come to its end: one whose body trickles in keeps nobody out.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry, most: int = MOST) -> None:
        self.app, self.most, self.inside = app, most, 0
        self._crowded = telemetry.reports.labels("crowded")
        self._refusal = errors.response(503, _SAID, headers=_AGAIN)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.inside >= self.most:
            self._crowded.inc()
            await self._refusal(scope, receive, send)
            return
        entered = False

        async def whole() -> Message:
            nonlocal entered
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False) and not entered:
                if self.inside >= self.most:
                    self._crowded.inc()
                    raise errors.Refusal(503, _SAID, headers=_AGAIN)
                entered = True
                self.inside += 1
            return message

        try:
            await self.app(scope, whole, send)
        finally:
            self.inside -= entered
