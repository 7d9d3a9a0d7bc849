"""Requests that are done again where the database undid what they did."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from api.store import again


class Again(APIRoute):
    """A route of "one request, one transaction": after a deadlock the whole is done anew, with what may have changed
    meanwhile looked up again, and never once its transaction was committed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of all routes of a router with this class."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await again.request(partial(handle, request))

        return handler
