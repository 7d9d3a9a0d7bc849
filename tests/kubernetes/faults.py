"""What a faulty API server does to one request, and to one watch; and how either is passed on."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from tests.kubernetes.api_request import ApiRequest, Predicate

_HOP_BY_HOP = {"connection", "host", "keep-alive", "transfer-encoding", "content-length", "accept-encoding"}
EXPIRED = {
    "type": "ERROR",
    "object": {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "too old resource version",
        "reason": "Expired",
        "code": 410,
    },
}
Fault = Callable[[web.Request, ApiRequest], Awaitable[web.StreamResponse]]
Hook = Callable[[ApiRequest], None]


@dataclass
class Rule:
    """What happens to the next requests that match: `left` of them, after the first `passed_over`."""

    matching: Predicate
    left: int
    passed_over: int = 0
    fault: Fault | None = None
    before: Hook | None = None
    after: Hook | None = None

    def takes(self, request: ApiRequest) -> bool:
        if self.left <= 0 or not self.matching(request):
            return False
        if self.passed_over > 0:
            self.passed_over -= 1
            return False
        self.left -= 1
        return True


@dataclass(eq=False)
class Watch:
    """An open watch. Once silent it stays so: going on would show a gap that no real connection has."""

    request: ApiRequest
    silent: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    last_line: bytes = b""


async def copy_lines(reply: aiohttp.ClientResponse, answered: web.StreamResponse, watch: Watch) -> None:
    """Hand on whole lines, so that what is put between them is a line too."""
    rest = b""
    async for chunk in reply.content.iter_any():
        lines, newline, rest = (rest + chunk).rpartition(b"\n")
        if newline and not watch.silent:
            await answered.write(lines + newline)
    if watch.silent:
        await asyncio.Event().wait()  # nor does it say that it is over


def end_to_end(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}


def cut(incoming: web.Request) -> web.StreamResponse:
    if incoming.transport is not None:
        incoming.transport.abort()
    return web.Response()
