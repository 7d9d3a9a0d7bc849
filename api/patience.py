"""HTTP for clients that are slow, by accident or on purpose: they are waited for, but not for ever.

Uvicorn waits without an end for a request's head, for a body, and for who does not read an answer, keeps as much of a
head as there comes, and takes as many connections as there are file descriptors. Here each of these has a limit.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import resource
import struct
import termios
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Bytes of a request's line and headers.
MAX_HEAD = 64 * 1024
# Bytes a second that a body, or the reading of an answer, must come to over each stretch of the patience.
LEAST = 1024
# Connections beyond the limit that are still told so; more of them are cut off.
_TOLD = 256
# Requests that a client may send before the one under way is answered; each is held, parsed, and takes far more memory
# than its bytes.
_AHEAD = 64
# File descriptors for all that is no client's connection.
_RESERVED = 256
# Seconds between two warnings.
_QUIET = 60.0
# Whether the process lives has nothing to do with how many ask it.
_ALWAYS = b"GET /livez "
log = logging.getLogger(__name__)
# What uvicorn says of clients: a line for each request that is none would be theirs to fill a disk with.
_of_clients = logging.getLogger("uvicorn.error.clients")
_of_clients.setLevel(logging.ERROR)


def protocol(patience: float, most: int) -> type["PatientProtocol"]:
    """The protocol of a listener: `patience` in seconds, and the connections that it takes."""
    return type("Protocol", (PatientProtocol,), {"patience": patience, "most": most})


def room(wanted: int, listeners: int) -> int:
    """Connections that each listener of this process can have: `wanted`, or as many as the system has file descriptors
    for. The limit is raised no further than that, since workers on this machine inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = (wanted + _TOLD) * listeners + _RESERVED
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    granted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
    return max(1, (granted - _RESERVED) // listeners - _TOLD)


class _TooFarAhead(Exception):
    """A client sends ever more requests and waits for no answer. Ends the parser."""


class PatientProtocol(HttpToolsProtocol):
    """One connection."""

    patience: float
    most: int
    _warned = -_QUIET

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self.logger = _of_clients
        self._in_head, self._in_body = True, False
        self._head = self._received = self._before = 0
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._refused = len(self.connections) > self.most
        if self._refused:
            self._warn()
            if len(self.connections) > self.most + _TOLD:
                transport.abort()
                return
        self._wait(self._late_head)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, or was sent away."""
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        if self._refused and not data.startswith(_ALWAYS):
            self._say(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections are open; try again", "Retry-After: 1\r\n")
            return
        if not self._in_head and not self._in_body:
            self._begin()
        self._received += len(data)
        if self._in_head:
            self._head += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            self._watch_writing()
        elif self._in_head and self._head > MAX_HEAD:
            self._say(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a request's head may have {MAX_HEAD} bytes, not more"
            )

    def on_message_begin(self) -> None:
        """A request begins; the one before may still be under way."""
        super().on_message_begin()
        self._begin()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if len(self.pipeline) >= _AHEAD:
            self.transport.abort()
            raise _TooFarAhead
        self._in_head, self._in_body, self._before = False, True, self._received
        self._wait(self._look_at_body)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is whole."""
        self._in_body = False
        self._wait(None)
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete and self.timeout_keep_alive_task is None:
            # It was answered before it had sent all: uvicorn has stopped counting how long it is idle.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """A request is answered."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_writing()
        elif self._in_head and not self.pipeline:
            # What has begun to come of the next one did not count while this one was under way.
            self._wait(self._late_head)

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for a while; the client may still be reading."""
        self._close()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is written to."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """It has read most of it."""
        super().resume_writing()
        # What is closed waits for the rest, too.
        if self._writing is not None and not self.transport.is_closing():
            self._writing.cancel()
            self._writing = None

    def _begin(self) -> None:
        self._in_head, self._head = True, 0
        if self.cycle is None or self.cycle.response_complete:
            self._wait(self._late_head)

    def _wait(self, late: Callable[[], None] | None) -> None:
        """From now on the client has its time for what it is to send; after it, `late` is called. None: it is free."""
        if self._reading is not None:
            self._reading.cancel()
        self._reading = self.loop.call_later(self.patience, late) if late is not None else None

    def _late_head(self) -> None:
        if self._head:
            self._say(HTTPStatus.REQUEST_TIMEOUT, f"the request's head took more than {self.patience:g} s")
        else:
            self._close()

    def _look_at_body(self) -> None:
        came, self._before = self._received - self._before, self._received
        # A body that nobody asks for yet is not the client's fault.
        held = self.flow.read_paused or (self.cycle is not None and self.cycle.waiting_for_100_continue)
        if held or came >= LEAST * self.patience:
            self._wait(self._look_at_body)
        elif self.cycle is not None and self.cycle.response_started:
            self._close()
        else:
            self._say(HTTPStatus.REQUEST_TIMEOUT, f"the body came by less than {LEAST} bytes a second")

    def _watch_writing(self) -> None:
        """From now on the client is to take some of what is written in each stretch."""
        if self._writing is None and self.transport.get_write_buffer_size():
            self._writing = self.loop.call_later(self.patience, self._look_at_writing, self._untaken())

    def _look_at_writing(self, before: int) -> None:
        left = self._untaken()
        if before - left < LEAST * self.patience:
            self.transport.abort()
            return
        self._writing = self.loop.call_later(self.patience, self._look_at_writing, left)

    def _untaken(self) -> int:
        """Bytes that the client has not taken. Those in the system count: it takes ours in lumps, as they go down."""
        ours: int = self.transport.get_write_buffer_size()
        with contextlib.suppress(OSError, ValueError, AttributeError):
            asked = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
            return ours + int(struct.unpack("i", asked)[0])
        return ours

    def _close(self) -> None:
        """Closes once the client has read what is written, for which it has its time."""
        self.transport.close()
        self._watch_writing()

    def _say(self, status: HTTPStatus, detail: str, more: str = "") -> None:
        """Answers in the application's stead, and closes; only closes where that would be in the midst of an answer."""
        cycle = self.cycle
        under_way = cycle is not None and not cycle.response_complete and (cycle.response_started or self._in_head)
        if under_way or self.pipeline:
            self._close()
            return
        problem: dict[str, Any] = {"type": "about:blank", "title": status.phrase, "status": status.value}
        body = json.dumps(problem | {"detail": detail, "errors": []})
        self.transport.write(
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/problem+json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n{more}\r\n{body}".encode()
        )
        self._close()

    def _warn(self) -> None:
        kind = PatientProtocol
        if time.monotonic() > kind._warned + _QUIET:
            kind._warned = time.monotonic()
            log.warning("%d connections are open: more are refused (MAX_CONNECTIONS)", self.most)
