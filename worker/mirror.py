"""A store in a bucket, as an attempt works with it: in a folder of its node, which the launcher keeps in step with it.

The ranks read and write the folder as they would a store that is one. The launcher fetches what they need before they
start; puts what they sealed, and tells of it only once its manifest lies in the bucket; and removes here what is there.
It outlives its ranks: what they sealed before they failed still gets there.
"""

import errno
import os
import queue
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from worker.contract import manifest
from worker.contract.manifest import Manifest
from worker.contract.order import Order
from worker.contract.protocol import Checkpoint, Event, Exit, Level, Output
from worker.errors import BadSpec, StoreFull, WorkerFailure
from worker.fetching import Chosen, Fetching
from worker.loose import Loose
from worker.paths import store_path
from worker.storage import Away, Full, ObjectStore, Options, Refused

# Seconds that the next checkpoint waits for the one before it, which is still on its way; then it is left out.
ROOM_WITHIN = 300.0
# Seconds that nothing may move to or from the store where nothing else is left to do. What is large takes its time.
END_PATIENCE = 600.0
# Seconds that calls are tried again before a person hears that the store is away.
_PATIENCE = 30.0
# Seconds between two looks at logs and spool.
LOOSE_EVERY = 20.0
# Seconds between two signs of progress.
_SIGN_EVERY = 2.0


@dataclass(frozen=True)
class Fetched:
    """What the ranks need is here: the inputs and, of a checkpoint, its path in the store, or why it is not."""

    path: str | None
    damaged: str = ""


@dataclass(frozen=True)
class Uploaded:
    """A checkpoint lies in the bucket: this node's `files` of it, or (None) all of it."""

    message: dict[str, Any]
    files: Manifest | None


@dataclass(frozen=True)
class Room:
    """Whether a rank may write its next checkpoint."""

    rank: int
    granted: bool


@dataclass(frozen=True)
class Said:
    """Something for a person."""

    type: str
    message: str
    level: Level


@dataclass(frozen=True)
class Failed:
    """The attempt cannot go on: the store refuses it, or is full."""

    exit: int
    reason: str
    message: str


@dataclass(frozen=True)
class Going:
    """There is progress."""


def event_of(said: Said) -> dict[str, Any]:
    """As a rank would have said it."""
    event = Event(type=said.type, message=said.message[:8192], level=said.level, at=datetime.now(UTC))
    return {"kind": "event", "event": event.model_dump(mode="json")}


News = Fetched | Uploaded | Room | Said | Failed | Going


class Mirror:
    """One node's. `tell` is called from its threads, with what the launcher should know."""

    def __init__(self, order: Order, local: Order, node: int, tell: Callable[[News], None]):
        """`order` names the bucket, `local` the folder. Connects to nothing yet. Raises BadSpec for a bad URL."""
        self._order, self._node, self._tell = order, node, tell
        folder = self._folder = store_path(local.store)
        self._given_up = threading.Event()
        self._signed = 0.0
        self._moved_at = time.monotonic()
        # Not for people: a test waits no half minute for a store to count as away.
        patience = float(os.environ.get("WORKER_STORE_PATIENCE", _PATIENCE))
        options = Options(patience=patience, given_up=self._given_up.is_set, moved=self._going_on)
        self._store = _reached(order.store, options)
        # That a log grows is no progress: an attempt that hangs may go on to complain.
        aside = ObjectStore(order.store, replace(options, moved=lambda: None))
        self._fetching = Fetching(self._store, order, folder, node)
        self._loose = Loose(aside, folder, local.folder, self._fetching.converted)
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._parts: dict[str, dict[int, Manifest]] = {}
        self._told: set[str] = set()
        # Of ranks that wait for room: whether they must have it, since when, and for how long they wait.
        self._asked: dict[int, tuple[bool, float, float]] = {}
        self._left_out = False
        self._over = threading.Event()
        self.undone: list[str] = []
        """What is not in the store yet, in words."""
        self.room_within, self.end_patience = ROOM_WITHIN, END_PATIENCE

    @property
    def settled(self) -> bool:
        """Whether all that was sealed is in the store, the parts of other nodes too."""
        return self.idle and not self._parts

    @property
    def idle(self) -> bool:
        """Whether nothing is left for this node to put."""
        return self._waiting == 0

    @property
    def given_up(self) -> bool:
        """Whether nothing is tried any more."""
        return self._given_up.is_set()

    def given_up_at(self, since: float) -> float:
        """When, by the monotonic clock, what has been waited for since then counts as not to come."""
        return max(since, self._moved_at) + self.end_patience

    def moved(self) -> None:
        """Something goes on at another node."""
        self._moved_at = time.monotonic()

    # Before the ranks start

    def fetch(self, refused: Sequence[str] = ()) -> None:
        """Fetches the inputs and the newest whole checkpoint that is none of the `refused`; tells `Fetched`."""
        self._in_thread("fetch", lambda: self._fetched(self._fetching.newest(refused, self._event)))

    def fetch_one(self, path: str | None) -> None:
        """Fetches the inputs and this node's part of one checkpoint, which another node has chosen."""
        self._in_thread("fetch", lambda: self._fetched(self._fetching.one(path)))

    def begin(self) -> None:
        """The attempt is accepted, and may write."""
        threading.Thread(target=self._work, name="mirror", daemon=True).start()
        threading.Thread(target=self._look, name="mirror-loose", daemon=True).start()

    def _fetched(self, chosen: Chosen) -> None:
        self._tell(Fetched(chosen.path, chosen.damaged))

    def _in_thread(self, name: str, do: Callable[[], None]) -> None:
        def run() -> None:
            try:
                self._patiently("what the attempt needs", do, for_ever=False)
            except WorkerFailure as failure:
                self._tell(Failed(failure.exit, failure.reason, failure.message))
            except Refused as error:
                self._tell(Failed(Exit.BAD_SPEC, BadSpec.reason, str(error.strerror)))
            except OSError as error:
                self._tell(_failed(error))
            except Exception:
                self._tell(_at_fault())

        threading.Thread(target=run, name=f"mirror-{name}", daemon=True).start()

    # Checkpoints and outputs

    def checkpoint(self, message: dict[str, Any]) -> None:
        """Puts a checkpoint that a rank of this node has sealed; tells `Uploaded`."""
        told = Checkpoint.model_validate(message["checkpoint"])

        def put() -> None:
            local = self._folder / told.path
            if told.path not in self._told:
                described = manifest.read(local)
                where = told.path if self._alone else f"{told.path}/node-{self._node}"
                self._store.put_files(local, where, described)
                # What was before a checkpoint is not done again: what no report has carried must not be here alone.
                self._loose.put("spool")
                if self._alone:
                    self._store.put_manifest(told.path, described)
                self._told.add(told.path)
                self._tell(Uploaded(message, None if self._alone else described))
            # There for good: it is read from here no more.
            shutil.rmtree(local, ignore_errors=True)

        self._put(f"the checkpoint of step {told.step}", put)

    def part(self, message: dict[str, Any], node: int, files: Manifest) -> None:
        """On node 0: a node's part of a checkpoint is there. With the last of them it is made whole, and told of."""
        told = Checkpoint.model_validate(message["checkpoint"])
        parts = self._parts.setdefault(told.path, {})
        parts[node] = files
        if len(parts) < self._order.spec.resources.nodes:
            return
        del self._parts[told.path]
        whole = Manifest(
            files={f"node-{of}/{name}": entry for of, part in parts.items() for name, entry in part.files.items()}
        )

        def put() -> None:
            self._store.put_manifest(told.path, whole)
            changed = told.model_copy(update={"bytes": whole.total_bytes, "sha256": whole.sha256})
            self._tell(Uploaded({**message, "checkpoint": changed.model_dump(mode="json")}, None))

        self._put(f"the checkpoint of step {told.step}", put)

    def outputs(self, outputs: Sequence[Output]) -> None:
        """Puts what the attempt hands over."""
        for output in outputs:
            self._put(f"the output {output.kind}", lambda path=output.path: self._put_whole(path))

    def hurry(self) -> None:
        """The attempt is to end: whoever waits for room may look up now."""
        for rank, (must, _, _) in list(self._asked.items()):
            if not must:
                del self._asked[rank]
                self._tell(Room(rank, self.settled))

    def room(self, rank: int, *, must: bool) -> None:
        """A rank wants to write its next checkpoint; `Room` says whether it may, once the one before is there.

        Where that takes too long, it may not, unless it `must`: then all wait, for as long as anything moves.
        """
        self._fetching.forget()
        self._asked[rank] = (must, time.monotonic(), 0.0 if self._left_out else self.room_within)
        self.answer()

    def answer(self) -> float | None:
        """Answers the ranks that asked for room, where it can be said; else gives when to ask again."""
        for rank, asked in list(self._asked.items()):
            must, late = asked[0], time.monotonic() >= self._until(*asked)
            if self.settled or late:
                del self._asked[rank]
            if self.settled:
                self._left_out = False
                self._tell(Room(rank, True))
            elif late and must:
                self._tell(_failed(Away(f"the store {self._store.url} has not answered for {self.end_patience:g} s")))
            elif late:
                if not self._left_out:
                    self._event(
                        "CheckpointLeftOut",
                        f"{' and '.join(self.undone)} is not in the store after {self.room_within:g} s: until it is, "
                        "training goes on, and no other is made",
                        "warning",
                    )
                self._left_out = True
                self._tell(Room(rank, False))
        return min((self._until(*asked) for asked in self._asked.values()), default=None)

    def _until(self, must: bool, since: float, within: float) -> float:
        return self.given_up_at(since) if must else since + within

    # The end

    def give_up(self) -> None:
        """Tries nothing again any more: what is not in the store by now does not get there."""
        self._given_up.set()

    def close(self, within: float) -> None:
        """Puts the last of spool and logs, in so many seconds at most, and removes what was only for this attempt."""
        self._over.set()
        if within > 0:
            self._given_up.clear()
            last = threading.Thread(target=self._loose.sync, name="mirror-last", daemon=True)
            last.start()
            last.join(within)
        self._given_up.set()
        shutil.rmtree(self._folder / self._order.job_folder, ignore_errors=True)

    # In its threads

    @property
    def _alone(self) -> bool:
        return self._order.spec.resources.nodes == 1

    def _put_whole(self, path: str) -> None:
        self._store.put_folder(self._folder / path, path)
        self._tell(Going())

    def _put(self, what: str, do: Callable[[], None]) -> None:
        with self._lock:
            self._waiting += 1
            self.undone.append(what)

        def run() -> None:
            try:
                self._patiently(what, do)
            except OSError as error:
                if not self._given_up.is_set():
                    self._tell(_failed(error))
                # It counts as undone for good.
                return
            except Exception:
                # This thread must live on, and whoever waits for it must hear why that is in vain.
                self._tell(_at_fault())
                return
            with self._lock:
                self._waiting -= 1
                self.undone.remove(what)
            self._tell(Going())

        self._jobs.put(run)

    def _work(self) -> None:
        while True:
            self._jobs.get()()

    def _look(self) -> None:
        while not self._over.wait(LOOSE_EVERY):
            self._loose.sync()

    def _patiently(self, what: str, do: Callable[[], None], *, for_ever: bool = True) -> None:
        """Does it, however long the store is away (or as long as that may be), and says so. Raises OSError."""
        away, began = False, time.monotonic()
        while True:
            try:
                do()
            except Away as error:
                if self._given_up.is_set() or not (for_ever or time.monotonic() < self.given_up_at(began)):
                    raise
                if not away:
                    away = True
                    self._event("StoreAway", f"{error.strerror}: {what} waits until it does", "warning")
                continue
            if away:
                self._event("StoreBack", f"the store {self._store.url} answers again: {what} is there", "info")
            return

    def _going_on(self) -> None:
        """Called whenever something was put or read."""
        now = self._moved_at = time.monotonic()
        if now - self._signed >= _SIGN_EVERY:
            self._signed = now
            self._tell(Going())

    def _event(self, type: str, message: str, level: Level) -> None:
        self._tell(Said(type, message, level))


def _reached(url: str, options: Options) -> ObjectStore:
    try:
        return ObjectStore(url, options)
    except ValueError as error:
        raise BadSpec(f"the store's URL {error}") from None


def _failed(error: OSError) -> Failed:
    """What a store's failure means for the attempt."""
    said = str(error.strerror or error)
    if error.errno == errno.ENOSPC:
        return Failed(Exit.FAILED, StoreFull.reason, f"the folder that the attempt works in has no room left: {said}")
    match error:
        case Full():
            return Failed(Exit.FAILED, StoreFull.reason, f"{said}; free some, or lower checkpoint.keep")
        case Away():
            # Nobody's fault here: the next attempt may find it.
            return Failed(Exit.KILLED, "Killed", said)
    return Failed(Exit.FAILED, WorkerFailure.reason, said)


def _at_fault() -> Failed:
    """What nobody foresaw, of the exception that is handled just now."""
    traceback.print_exc()
    said = f"what stands for the store on this node failed:\n{traceback.format_exc()[-4000:]}"
    return Failed(Exit.FAILED, WorkerFailure.reason, said)
