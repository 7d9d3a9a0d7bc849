"""Server-sent events that go on where they broke off."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import httpx_sse

from client.problems import Problem, Unreachable
from client.transport import PASSING, Transport

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
    patience: float = 600.0,
) -> Iterator[Sent]:
    """All events of a stream, each once and in order, over any number of broken connections.

    The server says `end` when no more will come; a connection that closes without it is opened again, after the last
    id. `patience` is for how many seconds nobody may answer. Raises Problem, Unreachable.
    """
    silent_since = time.monotonic()
    while True:
        try:
            for sent in _connection(transport, path, params or {}, last_id):
                silent_since = time.monotonic()
                if sent.event == "end":
                    return
                last_id = sent.id or last_id
                yield sent
            silent_since = time.monotonic()
        except (Unreachable, Problem) as error:
            refused = isinstance(error, Problem) and error.status not in PASSING
            if refused or time.monotonic() - silent_since > patience:
                raise
        time.sleep(_PAUSE)


def _connection(transport: Transport, path: str, params: dict[str, Any], last_id: str) -> Iterator[Sent]:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    wait = transport.http.timeout.connect
    timeout = httpx.Timeout(wait, read=SILENCE)
    with (
        transport.reaching(),
        httpx_sse.connect_sse(transport.http, "GET", path, params=params, headers=headers, timeout=timeout) as source,
    ):
        if source.response.is_error:
            source.response.read()
            raise Problem.of(source.response)
        if source.response.status_code == 204:
            # The connection broke just before the word that this was all.
            yield Sent("", "end", None)
            return
        for event in source.iter_sse():
            yield Sent(event.id, event.event, _plain(event.data))


def _plain(data: str) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data
