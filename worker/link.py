"""The connection between two launchers of an attempt: who may have one, what goes over it, and when it is broken.

Each end proves to the other that it has the attempt's token, which itself is never sent:

    leader   → follower   a nonce
    follower → leader     its node, a nonce of its own, and an HMAC of all that
    leader   → follower   another HMAC of all that
    follower → leader     that it is here: until then it may still give this connection up, and try another

The leader proves itself last: a stranger gets 36 bytes of no meaning, and is hung up on. Everything after that is a
JSON object with an HMAC of a key that this connection alone has, and of its number, so that nothing can be slipped in.
"""

import asyncio
import contextlib
import hmac
import json
import secrets
import struct
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

# Seconds between two signs of life, and how many may fail to come: a busy machine is late, and a lost one is silent.
BEAT = 5.0
SILENT_BEATS = 9
# Seconds that a greeting may take, from the connection to the last proof.
GREETING = 15.0
# What a follower says first: it has read the last proof, and will not try again on another connection.
HERE = {"here": True}
_MAGIC = b"rl\x00\x01"
_NONCE = 32
_PROOF = 32
_LONGEST = 64 * 2**20

Side = Literal["leader", "follower"]


class Stranger(Exception):
    """Whoever is at the other end does not have the attempt's token, or speaks something else."""


class Broken(Exception):
    """The connection has ended, with why."""


@dataclass(frozen=True)
class _Greeting:
    """What both ends have heard once the follower has spoken."""

    token: bytes
    leaders: bytes
    followers: bytes
    node: int

    def proof(self, label: str) -> bytes:
        said = b"%b|%b|%b|%d" % (label.encode(), self.leaders, self.followers, self.node)
        return hmac.digest(self.token, said, "sha256")

    def link(self, side: Side, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> "Link":
        other: Side = "leader" if side == "follower" else "follower"
        return Link(reader, writer, self.proof(f"from {side}"), self.proof(f"from {other}"))


async def greet(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: bytes, expects: Callable[[int], bool]
) -> tuple[int, "Link"]:
    """The leader's part. `expects`: whether a node is missing still. Gives the node that connected, and its link.

    Raises Stranger, OSError, EOFError.
    """
    leaders = secrets.token_bytes(_NONCE)
    writer.write(_MAGIC + leaders)
    followers, node = struct.unpack(f">{_NONCE}sI", await reader.readexactly(_NONCE + 4))
    greeting = _Greeting(token, leaders, followers, node)
    if not hmac.compare_digest(await reader.readexactly(_PROOF), greeting.proof("follower")):
        raise Stranger("a connection without this attempt's token")
    if not expects(node):
        raise Stranger(f"node {node} is not one that is missing")
    writer.write(greeting.proof("leader"))
    return node, greeting.link("leader", reader, writer)


async def introduce(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: bytes, node: int) -> "Link":
    """The follower's part. Raises Stranger, OSError, EOFError."""
    magic, leaders = struct.unpack(f">{len(_MAGIC)}s{_NONCE}s", await reader.readexactly(len(_MAGIC) + _NONCE))
    if magic != _MAGIC:
        raise Stranger("something else than this attempt's leader answers there")
    greeting = _Greeting(token, leaders, secrets.token_bytes(_NONCE), node)
    writer.write(greeting.followers + struct.pack(">I", node) + greeting.proof("follower"))
    if not hmac.compare_digest(await reader.readexactly(_PROOF), greeting.proof("leader")):
        raise Stranger("what answers there does not have this attempt's token")
    return greeting.link("follower", reader, writer)


class Link:
    """One end of a connection whose ends know each other. To be used in the thread of its event loop alone."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ours: bytes, theirs: bytes):
        self._reader, self._writer = reader, writer
        self._ours, self._theirs = ours, theirs
        self._sent = self._read = 0
        self._silent = 0

    def send(self, message: dict[str, Any]) -> None:
        """Says something; never waits. An end that is gone hears nothing."""
        self._write(json.dumps(message).encode())

    def close(self) -> None:
        """Ends the connection, once all that was said is sent."""
        self._writer.close()

    async def listen(self, hear: Callable[[dict[str, Any]], None]) -> str:
        """Gives each message to `hear`, and says that this end lives, until the connection has ended; gives why."""
        beating = asyncio.create_task(self._beat())
        try:
            while True:
                content = await self._next()
                self._silent = 0
                if content:
                    hear(json.loads(content))
        except (EOFError, OSError):
            if self._silent > SILENT_BEATS:
                return f"nothing was heard of it for {SILENT_BEATS * BEAT:g} s"
            return "its launcher's connection broke"
        except Broken as error:
            return str(error)
        finally:
            beating.cancel()
            self._writer.close()

    async def _beat(self) -> None:
        while True:
            # Silence is counted in this end's own turns: whoever was frozen itself does not take the other for dead.
            await asyncio.sleep(BEAT)
            self._silent += 1
            if self._silent > SILENT_BEATS:
                self._writer.transport.abort()
                return
            self._write(b"")

    def _write(self, content: bytes) -> None:
        with contextlib.suppress(OSError):
            self._writer.write(struct.pack(">I", len(content)) + _sign(self._ours, self._sent, content) + content)
        self._sent += 1

    async def _next(self) -> bytes:
        length, proof = struct.unpack(f">I{_PROOF}s", await self._reader.readexactly(4 + _PROOF))
        if length > _LONGEST:
            raise Broken(f"it sent a message of {length} bytes, which is none of ours")
        content = await self._reader.readexactly(length)
        if not hmac.compare_digest(proof, _sign(self._theirs, self._read, content)):
            raise Broken("somebody has changed what it sent")
        self._read += 1
        return content


class LinkThread:
    """An event loop in a thread of its own."""

    def __init__(self, name: str):
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name=name, daemon=True).start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Runs a coroutine in it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Calls a function in it, after all that was called before."""
        self._loop.call_soon_threadsafe(function, *arguments)


def _sign(key: bytes, number: int, content: bytes) -> bytes:
    return hmac.digest(key, number.to_bytes(8, "big") + content, "sha256")
