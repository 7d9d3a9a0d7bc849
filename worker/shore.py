"""Node 0's dealings with a store in a bucket: its own mirror, those of the other nodes, and what to make of both."""

import queue
from collections.abc import Callable, Iterator
from typing import Any

from worker.contract.manifest import Manifest
from worker.contract.order import Order
from worker.contract.protocol import Event, Exit, Finish
from worker.mirror import Failed, Fetched, Going, Mirror, News, Room, Said, Uploaded, event_of
from worker.outcome import Outcome

# Exit codes that say nothing against an attempt whose last files do not get into the store.
_WELL = {int(Exit.DONE), int(Exit.STOPPED)}


class Shore:
    """Where what the ranks left is brought home. All of it is called by the launcher's thread."""

    def __init__(self, order: Order, local: Order, wake: Callable[[], None]):
        """`wake` is called when there is news, in another thread. Raises BadSpec for a bad URL."""
        self._heard: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._wake = wake
        self.mirror = Mirror(order, local, 0, self._tell)
        self.failure: Outcome | None = None
        """Why the attempt cannot go on, if the store is why."""
        self._others = set(range(1, order.spec.resources.nodes))
        self._path: str | None = None
        self._fetched: dict[int, str] = {}
        self._refused: list[str] = []
        self._from_nodes: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        self._idle: set[int] = set()
        self._begun = False

    @property
    def settled(self) -> bool:
        """Whether all that was sealed is in the store, and told of."""
        if not self._begun:
            return True
        # What some node never sealed makes no checkpoint. Looked at in this order: news come before the work is done.
        done = self._idle >= self._others and self.mirror.idle
        return done and self._heard.empty() and self._from_nodes.empty()

    def begin(self) -> None:
        """The attempt is accepted: it may write, and what it reads is fetched."""
        self._begun = True
        self.mirror.begin()
        self.mirror.fetch()

    def takes(self, rank: int, message: dict[str, Any]) -> bool:
        """Whether a rank's message was for the mirrors."""
        match message:
            case {"kind": "checkpoint"}:
                self.mirror.checkpoint(message)
            case {"kind": "room", "must": must}:
                self.mirror.room(rank, must=must)
            case _:
                return False
        return True

    def hear(self, node: int, said: dict[str, Any]) -> None:
        """Takes what another node's mirror says; from any thread."""
        self._from_nodes.put((node, said))
        self._wake()

    def messages(self) -> Iterator[dict[str, Any]]:
        """What follows from what the mirrors have said, for the launcher to do."""
        while not self._heard.empty():
            yield from self._answer(self._heard.get())
        while not self._from_nodes.empty():
            yield from self._answer_node(*self._from_nodes.get())

    def end(self, outcome: Outcome) -> Outcome:
        """How the attempt has ended, now that nothing more is put."""
        if outcome.exit not in _WELL:
            return outcome
        if self.failure is not None:
            return self.failure
        if not (undone := self.mirror.undone):
            return outcome
        said = f"not in the store when the time was over: {', '.join(undone)}"
        if outcome.exit == Exit.DONE:
            # Nobody's fault here: the next attempt goes on from the newest checkpoint that is there.
            return Outcome(Exit.KILLED, Finish(outcome="failed", reason="Killed", message=said))
        message = f"{outcome.finish.message}; {said}"
        return Outcome(outcome.exit, outcome.finish.model_copy(update={"message": message}))

    def _answer(self, news: News) -> Iterator[dict[str, Any]]:
        match news:
            case Fetched(path=path):
                self._path, self._fetched = path, {}
                if self._others:
                    yield {"nodes": {"fetch": path}}
                else:
                    yield {"start": True}
            case Uploaded(message=message, files=None):
                yield message
            case Uploaded(message=message, files=files):
                assert files is not None
                self.mirror.part(message, 0, files)
            case Room(rank=rank, granted=granted):
                yield {"room": granted, "rank": rank}
            case Said():
                yield event_of(news)
            case Failed():
                self._fail(news)
            case Going():
                yield {"going": True}

    def _answer_node(self, node: int, said: dict[str, Any]) -> Iterator[dict[str, Any]]:
        match said:
            case {"fetched": _, "damaged": damaged}:
                self._fetched[node] = damaged
                if set(self._fetched) == self._others:
                    yield from self._all_fetched()
            case {"part": message, "files": files}:
                self.mirror.part(message, node, Manifest.model_validate({"files": files}))
            case {"kind": "event", "event": event}:
                yield {"kind": "event", "event": Event.model_validate(event).model_dump(mode="json")}
            case {"failed": {"exit": code, "reason": reason, "message": message}}:
                self._fail(Failed(code, reason, f"node {node}: {message}"))
            case {"idle": True}:
                self._idle.add(node)
            case {"going": True}:
                self.mirror.moved()
                yield said

    def _all_fetched(self) -> Iterator[dict[str, Any]]:
        damaged = {node: why for node, why in self._fetched.items() if why}
        if not damaged:
            yield {"start": True}
            return
        assert self._path is not None
        node, why = min(damaged.items())
        said = f"the checkpoint {self._path} is passed over: node {node}: {why}"
        yield event_of(Said("CheckpointDamaged", said, "warning"))
        self._refused.append(self._path)
        self.mirror.fetch(self._refused)

    def _fail(self, news: Failed) -> None:
        if self.failure is None:
            finish = Finish(outcome="failed", reason=news.reason, message=news.message[:8192])
            self.failure = Outcome(news.exit, finish)

    def _tell(self, news: News) -> None:
        """Called by the mirror's threads."""
        self._heard.put(news)
        self._wake()
