"""The attempt's other nodes, as node 0 sees them: their ranks are like its own, only that a link lies between.

The links live in a thread of their own, so that nobody who connects, and no node that is slow, makes the launcher wait.
"""

import asyncio
import contextlib
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

from worker.contract.order import Order
from worker.contract.protocol import Termination
from worker.link import GREETING, Link, LinkThread, Stranger, greet
from worker.logs import log
from worker.outcome import RankEnd
from worker.ranks import Rank

# Seconds that a node has to end a rank when told; then it counts as ended.
_AFTER_KILL = 3.0
# Connections that have not said yet who they are: of more, the oldest is hung up on.
_STRANGERS = 128


class RemoteRank(Rank):
    """A rank of another node. What it says is put here by the thread of the links."""

    def __init__(self, number: int, say: Callable[[dict[str, Any]], None], kill: Callable[["RemoteRank"], None]):
        super().__init__(number)
        self._say, self._kill = say, kill
        self._said: deque[dict[str, Any]] = deque()
        self._how: RankEnd | None = None
        self._killed = False

    @property
    def waiting(self) -> bool:
        return bool(self._said)

    def send(self, message: dict[str, Any]) -> None:
        self._say({"rank": self.number, "say": message})

    def messages(self) -> Iterator[dict[str, Any]]:
        while self._said:
            message = self._said.popleft()
            self._note(message)
            yield message

    def ended(self) -> bool:
        return self._how is not None

    def settle(self) -> RankEnd:
        assert self._how is not None
        self.end = replace(self._how, failure=self._failure, finished=self._finished)
        return self.end

    def kill(self) -> None:
        if self._how is None and not self._killed:
            self._killed = True
            self._kill(self)

    def says(self, message: dict[str, Any]) -> None:
        """It has said something. By this machine's clock: those of two need not agree on what came first."""
        self._said.append(message | {"at": time.time()})

    def ends(self, code: int, *, killed: bool = False, gone: str = "") -> None:
        """It has ended; nothing more comes from it."""
        if self._how is None:
            # Told to end, and then gone: it ended as it was told.
            killed = killed or (bool(gone) and self._killed)
            self._how = RankEnd(self.number, code, time.time(), killed_by_launcher=killed, gone=gone)


class Nodes:
    """All nodes but this one."""

    def __init__(
        self,
        order: Order,
        wake: Callable[[], None],
        asked: Callable[[], None],
        of_store: Callable[[int, dict[str, Any]], None] | None = None,
    ):
        """Begins to listen for them. `wake` is called when there is news, `asked` when a node was asked to stop.

        `of_store` takes what a node's mirror of the store says, where there are mirrors. All are called in another
        thread. Raises OSError.
        """
        assert order.meeting is not None
        self._token_file = Path(order.token_file)
        self._start = order.spec.limits.start
        self._wake, self._asked = wake, asked
        self.of_store = of_store
        self._thread = LinkThread("nodes")
        nodes, per_node = order.spec.resources.nodes, order.spec.resources.per_node
        self._nodes = {node: _Node(node, per_node, self) for node in range(1, nodes)}
        self._strangers: dict[asyncio.StreamWriter, None] = {}
        self._none_missing = asyncio.Event()
        """Each has come, or will not."""
        listening = _listen(order.meeting.port)
        self._serving = self._thread.run(self._serve(listening))

    @property
    def ranks(self) -> list[RemoteRank]:
        """Their ranks, by number."""
        return [rank for node in self._nodes.values() for rank in node.ranks]

    @property
    def here(self) -> bool:
        """Whether all have come."""
        return all(node.link is not None for node in self._nodes.values())

    def tell(self, code: int, termination: Termination | None) -> None:
        """Tells all nodes how the attempt ended: with this exit code, and this message if any is to be left."""
        said = termination.model_dump(mode="json") if termination is not None else None
        for node in self._nodes.values():
            self._thread.call(node.tell, {"verdict": {"code": code, "termination": said}})

    def tell_store(self, said: dict[str, Any]) -> None:
        """Tells all nodes' mirrors of the store something."""
        for node in self._nodes.values():
            self._thread.call(node.say, {"store": said})

    def close(self, within: float) -> None:
        """Returns when all nodes have heard the verdict, or after `within` seconds."""
        futures.wait([self._serving], within)

    def in_thread(self, function: Callable[..., object], *arguments: Any) -> None:
        self._thread.call(function, *arguments)

    def news(self, *, asked: bool = False) -> None:
        """Called by a node in the thread of the links."""
        if asked:
            self._asked()
        if all(node.link is not None or node.left.is_set() for node in self._nodes.values()):
            self._none_missing.set()
        self._wake()

    async def _serve(self, listening: socket.socket) -> None:
        """Lets the nodes in until all are here, and returns when all have left again."""
        server = await asyncio.start_server(self._hear, sock=listening)
        try:
            async with asyncio.timeout(self._start):
                await self._none_missing.wait()
        except TimeoutError:
            for node in self._nodes.values():
                if node.link is None:
                    node.leave(f"node {node.number} did not come within {self._start:g} s")
        # Nobody else is waited for: from now on connections are refused.
        server.close()
        for writer in self._strangers:
            writer.transport.abort()
        for node in self._nodes.values():
            await node.left.wait()

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection, from its greeting to its end."""
        self._strangers[writer] = None
        if len(self._strangers) > _STRANGERS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.transport.abort()
        try:
            async with asyncio.timeout(GREETING):
                token = self._token_file.read_bytes().strip()
                number, link = await greet(reader, writer, token, self._is_missing)
        except (Stranger, OSError, EOFError):
            writer.transport.abort()
            return
        finally:
            self._strangers.pop(writer, None)
        node = self._nodes[number]

        def hear(message: dict[str, Any]) -> None:
            if node.link is None and not node.left.is_set():
                node.link = link
                log(f"node {number} is here")
            if node.link is not link:
                link.close()
                return
            node.hear(message)

        why = "its link has failed"
        try:
            why = await link.listen(hear)
        finally:
            # A connection that it gave up before it was here is not the one that counts.
            if node.link is link:
                node.leave(f"node {number} is gone: {why}")

    def _is_missing(self, number: int) -> bool:
        node = self._nodes.get(number)
        return node is not None and node.link is None and not node.left.is_set()


class _Node:
    """Another node. All of it runs in the thread of the links."""

    def __init__(self, number: int, per_node: int, nodes: Nodes):
        self.number = number
        self.link: Link | None = None
        self.left = asyncio.Event()
        first = number * per_node
        self.ranks = [RemoteRank(n, self._send, self._kill) for n in range(first, first + per_node)]
        self._first, self._nodes = first, nodes
        self._told = False

    def hear(self, message: dict[str, Any]) -> None:
        """What its launcher says."""
        match message:
            case {"rank": number, "said": said}:
                self._rank(number).says(said)
            case {"rank": number, "ended": code, "killed": killed}:
                self._rank(number).ends(code, killed=killed)
            case {"store": said}:
                if self._nodes.of_store is not None:
                    self._nodes.of_store(self.number, said)
                return
            case {"asked": True}:
                log(f"node {self.number} was asked to stop by a signal")
                self._nodes.news(asked=True)
                return
        self._nodes.news()

    def tell(self, verdict: dict[str, Any]) -> None:
        """The last that is said to it; it hangs up when it has heard."""
        self._told = True
        if self.link is None:
            self.leave(None)
        else:
            self.link.send(verdict)

    def leave(self, why: str | None) -> None:
        """It is gone, or does not come, and what was heard of its ranks is the last; None: this node wants it so."""
        if why is not None and not self._told:
            log(why)
        for rank in self.ranks:
            rank.ends(-signal.SIGKILL, killed=why is None, gone=why or "")
        self.left.set()
        if self._nodes.of_store is not None:
            self._nodes.of_store(self.number, {"idle": True})
        self._nodes.news()

    def _rank(self, number: int) -> RemoteRank:
        return self.ranks[number - self._first]

    def _send(self, message: dict[str, Any]) -> None:
        """Called by the launcher's thread."""
        self._nodes.in_thread(self.say, message)

    def say(self, message: dict[str, Any]) -> None:
        """Says something to its launcher, if it is here."""
        if self.link is not None:
            self.link.send(message)

    def _kill(self, rank: RemoteRank) -> None:
        """Called by the launcher's thread."""
        self._nodes.in_thread(self._end, rank)

    def _end(self, rank: RemoteRank) -> None:
        if self.link is None or self.left.is_set():
            self.leave(None)
            return
        self.link.send({"rank": rank.number, "kill": True})

        def give_up() -> None:
            rank.ends(-signal.SIGKILL, killed=True)
            self._nodes.news()

        asyncio.get_running_loop().call_later(_AFTER_KILL, give_up)


def _listen(port: int) -> socket.socket:
    """Listens on all of this machine's addresses, of both families where it has both. Raises OSError."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_STRANGERS)
    return socket.create_server(("", port), backlog=_STRANGERS)
