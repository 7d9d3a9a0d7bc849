"""The launcher of any node but the first: it starts its ranks, and stands between them and the leader, node 0's.

What its ranks say goes to the leader, and what the leader says to them; the leader judges. It ends as the leader ends,
and with the leader: ranks that nobody hears must not go on.
"""

import asyncio
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tenacity

from worker.contract.order import Meeting, Order
from worker.contract.protocol import Exit, Finish, Termination
from worker.crew import Crew
from worker.grace import Grace
from worker.link import GREETING, HERE, Link, LinkThread, Stranger, introduce
from worker.logs import log
from worker.mirror import Failed, Fetched, Going, Mirror, Room, Said, Uploaded, event_of
from worker.outcome import Outcome
from worker.paths import store_path
from worker.ranks import LocalRank
from worker.termination import TerminationFile

_LONGEST_WAIT = 2.0
# Seconds that the last of the logs may take into a store in a bucket; and of the grace, what is left after that.
_LAST_FILES, _LAST_WORDS = 15.0, 1.0


@dataclass(frozen=True)
class _Verdict:
    """How the attempt has ended; no message: nothing of it may be touched."""

    exit: int
    termination: Termination | None

    @classmethod
    def of(cls, outcome: str, reason: str, code: int, message: str) -> "_Verdict":
        finish = Finish.model_validate({"outcome": outcome, "reason": reason, "message": message})
        return cls(code, Outcome(code, finish).termination(step=0))


def follow(
    order: Order, order_file: Path, lock_fd: int | None, node: int, file: TerminationFile, mirrored: Order | None
) -> int:
    """Runs node `node` of an attempt to its end, writes the leader's termination message, and gives its exit code.

    Raises BadSpec for a store that cannot be reached, OSError.
    """
    store_path(order.store)
    follower = Follower(order, order_file, lock_fd, node, file, mirrored)
    verdict = follower.run()
    if verdict.termination is not None:
        file.write(verdict.termination)
        log(f"ended with {verdict.exit}: {verdict.termination.reason} {verdict.termination.message}")
    # Last: whoever asked for the end may kill this process in the midst of it.
    follower.close(verdict)
    return verdict.exit


class Follower:
    """One node's part of an attempt."""

    def __init__(
        self,
        order: Order,
        order_file: Path,
        lock_fd: int | None,
        node: int,
        file: TerminationFile,
        mirrored: Order | None,
    ):
        """Starts the ranks, which wait, and begins to look for the leader. Raises OSError."""
        assert order.meeting is not None
        self._file = file
        self._node = node
        self._heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._signalled = self._told = False
        self._grace = Grace(order.spec.checkpoint.grace)
        self._verdict: _Verdict | None = None
        self._news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._mirror: Mirror | None = None
        self._mirroring = self._idle = False
        if mirrored is not None:
            self._mirror = Mirror(mirrored, order, node, self._tell)
        self._crew = Crew(order, order_file, lock_fd, node, self._asked)
        self._by_number = {rank.number: rank for rank in self._crew.ranks}
        self._leader = _Leader(order, order.meeting, node, self._hear)
        log(f"attempt {order.attempt} of {order.job}: node {node}, ranks {', '.join(map(str, self._by_number))}")

    def run(self) -> _Verdict:
        """Runs until the leader has said how the attempt ended, or is gone."""
        try:
            while self._verdict is None:
                self._turn()
        finally:
            self._crew.kill()
        self._leader.leave()
        self._crew.close()
        return self._verdict

    def close(self, verdict: _Verdict) -> None:
        """Puts the last of the logs into the store where that is a bucket, within what is left of the grace."""
        if self._mirror is not None:
            may_write = self._mirroring and verdict.termination is not None
            self._mirror.close(min(self._grace.left - _LAST_WORDS, _LAST_FILES) if may_write else 0.0)

    def _turn(self) -> None:
        until = self._mirror.answer() if self._mirror is not None else None
        for rank in self._crew.sleep(max(0.0, until - time.monotonic()) if until is not None else None):
            self._relay(rank)
        while self._verdict is None and not self._heard.empty():
            self._obey(self._heard.get())
        if self._signalled and not self._told and self._verdict is None:
            self._told = True
            self._grace.begin()
            log("asked to stop by a signal")
            if self._leader.found:
                self._leader.say({"asked": True})
            else:
                self._verdict = _Verdict.of("stopped", "Stopped", Exit.STOPPED, "stopped before it began")
        for rank in self._crew.ranks:
            if rank.end is None and rank.ended():
                self._relay(rank)
                end = rank.settle()
                self._leader.say({"rank": rank.number, "ended": end.code, "killed": end.killed_by_launcher})
        if self._mirror is not None:
            self._hear_mirror(self._mirror)

    def _relay(self, rank: LocalRank) -> None:
        for message in rank.messages():
            match message:
                case {"kind": "checkpoint"} if self._mirror is not None:
                    # Told once this node's part of it is in the store.
                    self._mirror.checkpoint(message)
                    continue
                case {"kind": "room", "must": must} if self._mirror is not None:
                    self._mirror.room(rank.number, must=must)
                    continue
            self._leader.say({"rank": rank.number, "said": message})

    def _hear_mirror(self, mirror: Mirror) -> None:
        while not self._news.empty():
            match self._news.get():
                case Fetched(path=path, damaged=damaged):
                    self._leader.say({"store": {"fetched": path, "damaged": damaged}})
                case Uploaded(message=message, files=files):
                    # Not as a word of the rank's: that may have ended meanwhile.
                    self._leader.say({"store": {"part": message, "files": files.model_dump()["files"]}})
                case Room(rank=rank, granted=granted):
                    self._by_number[rank].send({"room": granted})
                case Said() as said:
                    self._leader.say({"store": event_of(said)})
                case Failed(exit=code, reason=reason, message=message):
                    self._leader.say({"store": {"failed": {"exit": code, "reason": reason, "message": message}}})
                case Going():
                    self._leader.say({"store": {"going": True}})
        # Looked at in this order: news come before the work is done.
        if (
            not self._idle
            and mirror.settled
            and self._news.empty()
            and all(rank.end is not None for rank in self._crew.ranks)
        ):
            self._idle = True
            self._leader.say({"store": {"idle": True}})

    def _obey(self, message: dict[str, Any]) -> None:
        match message:
            case {"rank": number, "say": said}:
                if said.get("start"):
                    self._file.reserve()
                    self._crew.logs.begin()
                self._by_number[number].send(said)
            case {"rank": number, "kill": True}:
                self._by_number[number].kill()
            case {"store": {"fetch": path}} if self._mirror is not None:
                if not self._mirroring:
                    self._mirroring = True
                    self._mirror.begin()
                self._mirror.fetch_one(path)
            case {"verdict": {"code": code, "termination": said}}:
                self._verdict = _Verdict(code, Termination.model_validate(said) if said is not None else None)
            case {"gone": why}:
                self._verdict = _Verdict.of("failed", "Killed", Exit.KILLED, why)

    def _hear(self, message: dict[str, Any]) -> None:
        """Called by the link's thread."""
        self._heard.put(message)
        self._crew.wake()

    def _tell(self, news: object) -> None:
        """Called by the mirror's threads."""
        self._news.put(news)
        self._crew.wake()

    def _asked(self) -> None:
        """Called by a signal's handler, in the midst of anything; a second signal changes nothing."""
        self._signalled = True


class _Leader:
    """Node 0's launcher, and the link to it. What is said before it is found waits."""

    def __init__(self, order: Order, meeting: Meeting, node: int, hear: Callable[[dict[str, Any]], None]):
        """Begins to look for it. `hear` is given what it says, and `gone` once that is no more, in another thread."""
        self._meeting, self._node, self._hear = meeting, node, hear
        self._token_file = Path(order.token_file)
        self._patience = order.spec.limits.start
        self._waiting: list[dict[str, Any]] = []
        self._link: Link | None = None
        self._thread = LinkThread("leader")
        self._following = self._thread.run(self._follow())

    @property
    def found(self) -> bool:
        """Whether it knows of this node."""
        return self._link is not None

    def say(self, message: dict[str, Any]) -> None:
        """Says something; never waits."""
        self._thread.call(self._say, message)

    def leave(self) -> None:
        """Hangs up, which tells it that its last word was heard."""
        if self._link is not None:
            self._thread.call(self._link.close)

    def _say(self, message: dict[str, Any]) -> None:
        if self._link is None:
            self._waiting.append(message)
        else:
            self._link.send(message)

    async def _follow(self) -> None:
        why = "its link has failed"
        try:
            link = await self._found()
            link.send(HERE)
            for message in self._waiting:
                link.send(message)
            self._link = link
            log("node 0 is here")
            why = await link.listen(self._hear)
        except (OSError, EOFError, Stranger) as error:
            why = f"it was not found at {self._where} within {self._patience:g} s: {error or type(error).__name__}"
        finally:
            self._hear({"gone": f"node 0 is gone: {why}"})

    async def _found(self) -> Link:
        """The link, once it is there: its pod may start later, and have no name until then."""
        log(f"looking for node 0 at {self._where}")
        trying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((OSError, EOFError, Stranger)),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=_LONGEST_WAIT),
            stop=tenacity.stop_after_delay(self._patience),
            reraise=True,
        )
        return await trying(self._try)

    async def _try(self) -> Link:
        async with asyncio.timeout(GREETING):
            reader, writer = await asyncio.open_connection(self._meeting.host, self._meeting.port)
        try:
            async with asyncio.timeout(GREETING):
                return await introduce(reader, writer, self._token_file.read_bytes().strip(), self._node)
        except BaseException:
            writer.transport.abort()
            raise

    @property
    def _where(self) -> str:
        return f"{self._meeting.host}:{self._meeting.port}"
