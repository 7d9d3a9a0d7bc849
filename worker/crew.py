"""The ranks of this machine together, and the one place where their launcher sleeps."""

import os
import selectors
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from worker.contract.order import Order
from worker.errors import BadSpec
from worker.logs import Logs
from worker.ranks import LocalRank, spawn
from worker.wakeup import Wakeup

# Seconds that the ranks' last words may take to reach the log: what they started may hold the pipe open.
_LAST_WORDS = 2.0


def node_index(order: Order) -> int:
    """Which of the attempt's nodes this is. Raises BadSpec for one that it does not have."""
    nodes = order.spec.resources.nodes
    if order.meeting is None:
        if nodes > 1:
            raise BadSpec(f"resources.nodes: {nodes} nodes are asked for, and this cluster runs an attempt on one")
        return 0
    said = os.environ.get("JOB_COMPLETION_INDEX", "0")
    if not said.isdecimal() or int(said) >= nodes:
        raise BadSpec(f"this is node {said!r} by JOB_COMPLETION_INDEX, of an attempt of {nodes} nodes")
    return int(said)


class Crew:
    """The ranks of this node, from their start to the last of their words."""

    def __init__(self, order: Order, order_file: Path, lock_fd: int | None, node: int, asked: Callable[[], None]):
        """Starts the ranks, which wait. `asked` is called when a signal asks for the end, in the midst of anything.

        In the main thread only. Raises OSError.
        """
        self._scratch, self._made = order_file.parent, False
        if not os.access(self._scratch, os.W_OK):
            # Kubernetes mounts what it gives an attempt for reading alone.
            self._scratch, self._made = Path(tempfile.mkdtemp(prefix="rlhf-")), True
        self._selector = selectors.DefaultSelector()
        self._wakeup = Wakeup()
        self._selector.register(self._wakeup, selectors.EVENT_READ, None)
        self._wakeup.listen({signal.SIGTERM: asked, signal.SIGINT: asked})
        self.logs = Logs(Path(order.log_folder), order.echo)
        self.ranks = spawn(order, order_file, lock_fd, node, self.logs, self._scratch)
        for rank in self.ranks:
            self._selector.register(rank.line, selectors.EVENT_READ, rank)

    def sleep(self, seconds: float | None) -> Iterator[LocalRank]:
        """Waits until something happens, `seconds` at most; gives the ranks that have said something, to be heard."""
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._wakeup.clear()
                continue
            yield key.data
            if key.data.hung_up:
                # Its process is as good as gone; to wait for its end on this line would be to spin.
                self._selector.unregister(key.fileobj)

    def wake(self) -> None:
        """Ends the sleep, from any thread."""
        self._wakeup.wake()

    def kill(self) -> None:
        """Ends all ranks that live."""
        for rank in self.ranks:
            rank.kill()

    def close(self) -> None:
        """Brings the last words into the logs, and removes what was only for this attempt. All ranks have ended."""
        self.logs.close(_LAST_WORDS)
        if self._made:
            shutil.rmtree(self._scratch, ignore_errors=True)
