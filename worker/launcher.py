"""The launcher of node 0: it starts the ranks, hands signals on, waits for all nodes' ranks, and tells the end.

Its main thread sleeps until a rank, a signal or the reporter has something for it. It imports no torch. The launchers
of other nodes follow it (`worker/follower.py`).
"""

import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.channel import Stop
from worker.contract.order import Order
from worker.contract.protocol import Exit, Finish
from worker.crew import Crew
from worker.grace import Grace
from worker.logs import log
from worker.outbox import Outbox
from worker.outcome import Outcome, failed, judge, stopped
from worker.paths import store_path
from worker.ranks import Rank
from worker.reporter import DRAIN, Heard, Reporter, Word
from worker.termination import TerminationFile

if TYPE_CHECKING:
    from worker.nodes import Nodes
    from worker.shore import Shore

# Seconds that a SIGTERM waits to hear whether the owner wants a checkpoint at all.
ASK_WITHIN = 2.0
# Seconds that ranks have to end by themselves after one of them failed.
AFTER_FAILURE = 3.0
# Seconds that the last reports may still take once a signal asks for the end; a call in flight is added.
_HURRIED = 2.0
# Seconds that the last of logs and spool may take into a store in a bucket; and of the grace, what is left after that.
_LAST_FILES, _LAST_WORDS = 15.0, 1.0
# Seconds that the other nodes have to hear how the attempt ended.
_FAREWELL = 2.0


class Launcher:
    """One attempt, from its first report until its ranks have ended and its reports are delivered."""

    def __init__(
        self,
        order: Order,
        order_file: Path,
        lock_fd: int | None,
        outbox: Outbox,
        file: TerminationFile,
        mirrored: Order | None,
    ):
        """Starts the ranks, which wait. Raises BadSpec for a store that cannot be reached, OSError."""
        self._order = order
        self._outbox = outbox
        self._termination = file
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._shore = _shore_of(mirrored, order, self._news) if mirrored is not None else None
        self._signalled = False
        self._asked_at: float | None = None
        """When a signal asked for the end, by the monotonic clock."""
        self._stop: Stop | None = None
        self._stopping = "stopped when asked"
        self._kill_at: float | None = None
        self._grace = Grace(order.spec.checkpoint.grace)
        self._gathered: dict[int, Any] = {}
        self._over = False
        self._refused: str | None = None
        self._reporter = Reporter(order, outbox, store_path(order.store) / order.folder / "spool", self._tell)
        self._reporting = self._delivering = False
        self._crew = Crew(order, order_file, lock_fd, 0, self._asked)
        self._ranks: list[Rank] = [*self._crew.ranks]
        self._nodes = _other_nodes(order, self._crew.wake, self._asked, self._shore)
        if self._nodes is not None:
            self._ranks += self._nodes.ranks
        log(f"attempt {order.attempt} of {order.job}: {len(self._ranks)} ranks")

    def __enter__(self) -> "Launcher":
        return self

    def __exit__(self, *_: object) -> None:
        """Returns when the other nodes have heard the end and the logs are written, or within seconds."""
        if self._nodes is not None:
            self._nodes.close(_FAREWELL)
        self._crew.close()
        if self._shore is not None:
            may_write = self._reporter.accepted and not self._reporter.gone
            self._shore.mirror.close(min(self._grace.left - _LAST_WORDS, _LAST_FILES) if may_write else 0.0)

    def run(self) -> Outcome | None:
        """Runs until all ranks have ended. None: the attempt was over before it was accepted."""
        try:
            self._report_once_all_are_here()
            while any(rank.end is None for rank in self._ranks):
                self._turn()
        finally:
            # Also when the launcher itself is at fault: no rank goes on without it.
            self._kill()
        outcome = self._judged()
        if self._shore is not None:
            outcome = self._brought_home(self._shore, outcome)
        if self._nodes is not None:
            said = outcome.termination(step=self._outbox.step) if outcome is not None else None
            self._nodes.tell(outcome.exit if outcome is not None else Exit.STOPPED, said)
        return outcome

    def _judged(self) -> Outcome | None:
        if self._over:
            message = "the control plane says that this attempt is over"
            return stopped(message) if self._reporter.accepted else None
        if self._refused is not None:
            return failed(Exit.FAILED, "WorkerError", f"the control plane refused this attempt: {self._refused}")
        if self._shore is not None and self._shore.failure is not None:
            return self._shore.failure
        ends = [rank.end for rank in self._ranks if rank.end is not None]
        return judge(ends, self._ranks[0].outputs, self._stopping if self._stop is not None else None)

    def deliver(self, finish: Finish) -> int:
        """Sends what is left and the last word, within a minute or what is left of the grace. Gives what could not be.

        The reports that are not delivered stay in the spool, for the operator to read.
        """
        self._delivering = True
        if self._signalled:
            self._hurry()
        if self._reporter.accepted:
            self._outbox.stopping()
            self._reporter.close(None if self._over else finish, self._drain_within())
        return self._reporter.undelivered

    def _turn(self) -> None:
        """Sleeps until something happens or a deadline passes, and answers it."""
        for speaker in self._crew.sleep(self._until_next_deadline()):
            self._hear_rank(speaker)
        self._report_once_all_are_here()
        if self._signalled and self._asked_at is None:
            self._hear_signal()
        while not self._heard.empty():
            self._hear_control(self._heard.get())
        if self._shore is not None:
            self._hear_store(self._shore)
        for rank in self._ranks:
            if rank.end is None and (rank.waiting or rank.ended()):
                # Everything that it said before its end has come by now.
                ended = rank.ended()
                self._hear_rank(rank)
                if ended:
                    self._hear_end(rank)
        now = time.monotonic()
        if self._asked_at is not None and self._stop is None and now >= self._asked_at + ASK_WITHIN:
            self._ask_to_stop("save")
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            if self._shore is not None and self._grace.over:
                self._shore.mirror.give_up()
            self._stopping = f"not done within the grace of {self._order.spec.checkpoint.grace:g} s"
            self._kill()

    def _report_once_all_are_here(self) -> None:
        """An attempt has begun when all its ranks can: until then the control plane hears nothing of it."""
        if not self._reporting and (self._nodes is None or self._nodes.here):
            self._reporting = True
            self._reporter.start()

    def _hear_rank(self, rank: Rank) -> None:
        for message in rank.messages():
            if message["kind"] == "gather":
                self._gathered[rank.number] = message["value"]
                if len(self._gathered) == len(self._ranks):
                    self._say({"gathered": [self._gathered[number] for number in range(len(self._ranks))]})
                    self._gathered = {}
            elif self._shore is not None and self._shore.takes(rank.number, message):
                self._reporter.nudge()
            else:
                self._outbox.hear(message)
                # What comes before a checkpoint is not done again: it is on disk, or told, while that is being written,
                # so that it does not wait here, where it can be lost, once the checkpoint is whole.
                if message.get("activity") == "saving":
                    self._reporter.shelter()
                elif message["kind"] == "checkpoint":
                    self._reporter.nudge()

    def _hear_end(self, rank: Rank) -> None:
        """A rank that ended otherwise than well takes the others with it, after a moment to say why."""
        end = rank.settle()
        if not end.well:
            log(f"rank {rank.number} ended with {end.code}")
            self._limit(time.monotonic() + AFTER_FAILURE)

    def _hear_signal(self) -> None:
        self._asked_at = time.monotonic()
        log("asked to stop by a signal")
        if self._reporter.accepted:
            self._begin_grace()
            self._reporter.nudge()
        else:
            self._ask_to_stop("discard")

    def _hear_control(self, heard: Heard) -> None:
        match heard.word:
            case Word.ACCEPTED:
                self._termination.reserve()
                self._crew.logs.begin()
                if self._shore is not None:
                    # The ranks are told to start once all is here that they read.
                    self._shore.begin()
                else:
                    self._say({"start": True})
            case Word.REFUSED:
                self._refused = heard.why
                self._kill()
            case Word.OVER:
                log(f"this attempt is over: {heard.why}")
                self._over = True
                self._kill()
            case Word.WISH if heard.desired == "cancel":
                self._ask_to_stop("discard")
            case Word.WISH if heard.desired == "pause":
                self._ask_to_stop("save")
            case Word.WISH if self._asked_at is not None and heard.asked_at >= self._asked_at:
                # Whoever sent the signal, it was not the owner: keep what there is.
                self._ask_to_stop("save")

    def _ask_to_stop(self, stop: Stop) -> None:
        """Asks all ranks to stop. A wish to save may still become one to discard, and no wish is taken back."""
        if self._stop in (stop, "discard"):
            return
        self._stop = stop
        if self._shore is not None:
            self._shore.mirror.hurry()
        self._begin_grace()
        self._outbox.stopping()
        self._reporter.nudge()
        log(f"the ranks are asked to stop: {stop}")
        if self._outbox.begun:
            self._say({"stop": stop})
        else:
            # No step was made: there is nothing to save, and a load cut short leaves nothing half-written.
            self._stopping = "stopped before its first step"
            self._kill()

    def _begin_grace(self) -> None:
        if not self._grace.begun:
            self._grace.begin()
            self._limit(self._grace.work_until)

    def _limit(self, at: float) -> None:
        self._kill_at = at if self._kill_at is None else min(self._kill_at, at)

    def _drain_within(self) -> float:
        """Seconds that the last reports may take: after the grace, this process is killed too."""
        return min(DRAIN, self._grace.left)

    def _until_next_deadline(self) -> float | None:
        deadlines = [self._kill_at] if self._kill_at is not None else []
        if self._asked_at is not None and self._stop is None:
            deadlines.append(self._asked_at + ASK_WITHIN)
        if self._shore is not None and (at := self._shore.mirror.answer()) is not None:
            deadlines.append(at)
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _say(self, message: dict[str, Any]) -> None:
        for rank in self._ranks:
            rank.send(message)

    def _kill(self) -> None:
        for rank in self._ranks:
            rank.kill()

    def _hear_store(self, shore: "Shore") -> None:
        """What has come of fetching and putting."""
        for message in shore.messages():
            match message:
                case {"start": True}:
                    self._say(message)
                case {"room": granted, "rank": number}:
                    self._ranks[number].send({"room": granted})
                case {"nodes": said}:
                    assert self._nodes is not None
                    self._nodes.tell_store(said)
                case {"kind": _}:
                    self._outbox.hear(message)
                    self._reporter.nudge()
                case {"going": True}:
                    self._outbox.going_on()
        if shore.failure is not None:
            self._kill()

    def _brought_home(self, shore: "Shore", outcome: Outcome | None) -> Outcome | None:
        """Waits until all that the ranks left is in the store, and says how the attempt ended after that."""
        if outcome is None or self._over or (self._stop == "discard" and outcome.exit != Exit.DONE):
            shore.mirror.give_up()
            return outcome
        if outcome.exit == Exit.DONE:
            shore.mirror.outputs(outcome.finish.outputs)
        began = time.monotonic()
        while not (shore.settled or shore.failure or self._over or shore.mirror.given_up):
            self._kill_at = min(shore.mirror.given_up_at(began), self._grace.work_until)
            self._turn()
            if time.monotonic() >= shore.mirror.given_up_at(began):
                shore.mirror.give_up()
        if self._over:
            shore.mirror.give_up()
        self._hear_store(shore)
        return shore.end(outcome)

    def _news(self) -> None:
        """Called by the mirror's threads."""
        self._crew.wake()

    def _tell(self, heard: Heard) -> None:
        """Called by the reporter's thread."""
        self._heard.put(heard)
        self._crew.wake()

    def _asked(self) -> None:
        """Called by a signal's handler, or another node's, in the midst of anything; a second changes nothing."""
        self._signalled = True
        if self._delivering:
            self._hurry()

    def _hurry(self) -> None:
        """The ranks are done: this must be over before whoever asks for the end kills it, or nobody knows that."""
        if not self._grace.begun:
            self._reporter.hurry(_HURRIED)


def _shore_of(mirrored: Order, local: Order, wake: Callable[[], None]) -> "Shore":
    # Only those need it whose store is a bucket.
    from worker.shore import Shore

    return Shore(mirrored, local, wake)


def _other_nodes(
    order: Order, wake: Callable[[], None], asked: Callable[[], None], shore: "Shore | None"
) -> "Nodes | None":
    if order.spec.resources.nodes == 1:
        return None
    # An event loop is imported only by those who need one: most attempts have one node, and are to begin at once.
    from worker.nodes import Nodes

    return Nodes(order, wake, asked, shore.hear if shore is not None else None)
