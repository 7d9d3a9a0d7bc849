"""Server-sent events that go on where they broke off."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import httpx_sse

from client.problems import Problem, Unreachable
from client.transport import Transport

# The server says something at least every 15 s; a connection that is silent for longer is dead.
SILENCE = 45.0
_PAUSE = 0.5


@dataclass(frozen=True, slots=True)
class Sent:
    """One server-sent event. `id` is what to go on from."""

    id: str
    event: str
    data: Any


def follow(
    transport: Transport,
    path: str,
    *,
    params: dict[str, Any] | None = None,
    last_id: str = "",
    over: Callable[[], bool] = lambda: False,
    patience: float = 600.0,
) -> Iterator[Sent]:
    """All events of a stream, each once and in order, over any number of broken connections.

    A connection that the server closes is opened again with the last id, until `over` (asked whenever the stream has
    been read to its end) says that no more will come. `patience` is for how many seconds a server may be silent
    altogether. Raises Problem, Unreachable.
    """
    silent_since = time.monotonic()
    while True:
        # Asked before reading: what was written before the end is still in the stream.
        last_turn = False
        failure: Unreachable | None = None
        try:
            last_turn = over()
            for sent in _connection(transport, path, params or {}, last_id):
                silent_since = time.monotonic()
                if sent.event == "end":
                    return
                last_id = sent.id or last_id
                yield sent
            silent_since = time.monotonic()
        except Unreachable as error:
            failure = error
        except Problem as error:
            if error.status not in (502, 503, 504):
                raise
            failure = Unreachable(transport.url, error.title)
        if failure is None and last_turn:
            return
        if failure is not None and time.monotonic() - silent_since > patience:
            raise failure
        time.sleep(_PAUSE)


def _connection(transport: Transport, path: str, params: dict[str, Any], last_id: str) -> Iterator[Sent]:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    timeout = httpx.Timeout(transport.http.timeout, read=SILENCE)
    with (
        transport.reaching(),
        httpx_sse.connect_sse(transport.http, "GET", path, params=params, headers=headers, timeout=timeout) as source,
    ):
        if source.response.is_error:
            source.response.read()
            raise Problem.of(source.response)
        for event in source.iter_sse():
            yield Sent(event.id, event.event, _plain(event.data))


def _plain(data: str) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data
