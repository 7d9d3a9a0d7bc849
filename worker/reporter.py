"""The thread that talks to the control plane: a report every few seconds, a spool while nobody answers.

It never makes the training wait. What it hears, it hands to the launcher.
"""

import math
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from worker.contract.order import Order
from worker.contract.protocol import Answer, Desired, Finish, Report
from worker.control import Control, Reply, Verdict
from worker.outbox import Outbox
from worker.spool import Spool, says_something

# Seconds between two reports: the heartbeat.
HEARTBEAT = 2.0
# Seconds that the reports still waiting at the end may take.
DRAIN = 60.0
_LONGEST_WAIT = 2.0
# Seconds between two reports at least, however urgent the second: what comes meanwhile is sent with it.
_APART = 0.1
_SET_ASIDE_AT_MOST = 20


class Word(Enum):
    """What the control plane said about the attempt as a whole."""

    ACCEPTED = auto()
    """The first report was answered: this is the job's live attempt."""
    REFUSED = auto()
    """It was never accepted, and never will be."""
    OVER = auto()
    """The attempt is over: it must stop at once and save nothing."""
    WISH = auto()
    """What the owner wants, as of a report sent at `asked_at`."""


@dataclass(frozen=True)
class Heard:
    """One thing heard from the control plane."""

    word: Word
    desired: Desired = "run"
    asked_at: float = 0.0
    """By the monotonic clock, when the report that this answers was sent."""
    why: str = ""


class Reporter(threading.Thread):
    """Sends what is in the outbox until it is closed; `tell` is called from this thread."""

    def __init__(self, order: Order, outbox: Outbox, spool_folder: Path, tell: Callable[[Heard], None]):
        super().__init__(name="reporter", daemon=True)
        self._control = Control(Path(order.control_url_file), Path(order.token_file))
        # The cluster may start another process for the same attempt: by this they are told apart.
        self._launcher = secrets.token_hex(16)
        self._outbox = outbox
        self._spool = Spool(spool_folder)
        self._aside = spool_folder / "refused"
        self._tell = tell
        self._due = threading.Event()
        self._closed = threading.Event()
        self._finish: Finish | None = None
        self._deadline = self._hurried = math.inf
        self._refused = 0
        self._thinned_told = False
        self._samples_thinned_told = False
        self._over = self._gone = False
        # Of the spool and of what is being sent; not held while anybody is waited for.
        self._lock = threading.RLock()
        self._sending: Report | None = None
        """A report that is being sent, and is not in the spool."""
        self.accepted = False
        """Whether any report was accepted: before that, nothing is written anywhere."""

    @property
    def gone(self) -> bool:
        """Whether the job is gone: nothing of it is to be written any more."""
        return self._gone

    @property
    def undelivered(self) -> int:
        """Reports that are still in the spool."""
        return len(self._spool)

    def nudge(self) -> None:
        """Sends a report at once."""
        self._due.set()

    def shelter(self) -> None:
        """Brings all to disk that is not answered yet, also what is being sent just now, and has it sent at once."""
        if self.accepted:
            with self._lock:
                if self._sending is not None:
                    self._keep(self._sending)
                self._keep_all()
        self.nudge()

    def close(self, finish: Finish | None, within: float) -> None:
        """Sends what is left and then `finish`, in `within` seconds at most; returns when that is done or given up."""
        self._finish = finish
        self._deadline = time.monotonic() + within
        self._closed.set()
        self._due.set()
        # A call in flight may last longer; whatever it carries is in the spool.
        self.join(within + 1.0)

    def hurry(self, within: float) -> None:
        """Gives the last reports so many seconds more at most. Safe in a signal's handler."""
        self._hurried = time.monotonic() + within

    def run(self) -> None:
        """The thread's life: the first report until it is answered, then one every heartbeat, then the rest."""
        if not self._first():
            return
        sent_at = time.monotonic()
        while not self._closed.is_set() and not self._over:
            self._due.wait(HEARTBEAT)
            self._closed.wait(max(0.0, sent_at + _APART - time.monotonic()))
            self._due.clear()
            try:
                self._report()
            except Exception:
                # A fault in reporting must not end the training, nor the reports after it.
                traceback.print_exc()
            sent_at = time.monotonic()
        if not self._over:
            self._drain()
        else:
            # What was done until then is left in the spool: a checkpoint may be there that the next attempt goes on
            # from, and the points before it are nowhere else.
            self._closed.wait()
            self._keep_all()
        if not self._gone:
            with self._lock:
                self._spool.settle()

    def _first(self) -> bool:
        """Sends the first report until it is answered; gives whether it was accepted. It touches nothing."""
        report, wait = self._outbox.cut(), 0.1
        while not self._closed.is_set():
            asked_at = time.monotonic()
            reply = self._control.report(report.model_copy(update={"launcher": self._launcher}))
            match reply.verdict:
                case Verdict.ACCEPTED:
                    self.accepted = True
                    self._tell(Heard(Word.ACCEPTED))
                    self._tell(_wish(reply, asked_at))
                    return True
                case Verdict.OVER | Verdict.GONE:
                    self._tell(Heard(Word.OVER, why=reply.message))
                    return False
                case Verdict.FORBIDDEN:
                    self._tell(Heard(Word.REFUSED, why=reply.message))
                    return False
                case Verdict.MALFORMED:
                    self._complain(report, reply)
                    report = self._outbox.cut()
                    wait = _LONGEST_WAIT
            self._closed.wait(wait)
            wait = min(wait * 2, _LONGEST_WAIT)
        return False

    def _report(self) -> None:
        """Sends the news there is; with none, an empty report as a sign of life."""
        with self._lock:
            self._spool.settle()
        while self._deliver() and self._send_news():
            # What came while it was sent goes with the next, or a busy machine would send a report a point.
            if not self._outbox.left_over and not self._spool:
                return
        self._keep_all()

    def _send_news(self) -> bool:
        """Sends the oldest news, and spools it where that fails. Gives whether it was sent, or must wait its turn."""
        with self._lock:
            if self._spool:
                # Sheltered just now, and older: what is told after a later report counts no more.
                return True
            report = self._sending = self._outbox.cut()
        sent = self._send(report)
        with self._lock:
            self._sending = None
            if not sent:
                self._keep(report)
            elif report.seq in self._spool:
                self._spool.remove(report.seq)
        return sent

    def _keep_all(self) -> None:
        """Spools all the news there is."""
        with self._lock:
            while not self._gone and self._outbox.pending():
                self._keep(self._outbox.cut())

    def _keep(self, report: Report) -> None:
        """Spools a report, unless it says nothing that a later one does not."""
        if not self._gone and says_something(report) and report.seq not in self._spool:
            self._spool.add(report)
        if self._spool.samples_thinned and not self._samples_thinned_told:
            self._samples_thinned_told = True
            self._outbox.event(
                "SamplesThinned", "the control plane is away for long: fewer samples of each step are kept", "warning"
            )
        if self._spool.thinned and not self._thinned_told:
            self._thinned_told = True
            self._outbox.event(
                "MetricsThinned", "the control plane is away for long: curves are kept with fewer points", "warning"
            )

    def _deliver(self) -> bool:
        """Sends what is in the spool, oldest first, until one finds no answer. Gives whether all is sent."""
        while not self._over and (report := self._oldest()) is not None:
            if self._left() <= 0:
                return False
            if not self._send(report):
                return False
            with self._lock:
                self._spool.remove(report.seq)
        if self._spool.lost:
            self._outbox.event("ReportsLost", f"{self._spool.lost} spooled reports could not be read again", "warning")
            self._spool.lost = 0
        return True

    def _oldest(self) -> Report | None:
        with self._lock:
            return self._spool.oldest()

    def _send(self, report: Report) -> bool:
        """Sends one report. Gives whether it is done with: accepted, or one that never will be."""
        asked_at = time.monotonic()
        reply = self._control.report(report.model_copy(update={"launcher": self._launcher}))
        match reply.verdict:
            case Verdict.ACCEPTED:
                self._tell(_wish(reply, asked_at))
                return True
            case Verdict.MALFORMED:
                self._complain(report, reply)
                return True
            case Verdict.OVER | Verdict.GONE:
                self._over, self._gone = True, reply.verdict is Verdict.GONE
                self._tell(Heard(Word.OVER, why=reply.message))
        return False

    def _complain(self, report: Report, reply: Reply) -> None:
        """Sets a refused report aside and says so, a limited number of times."""
        self._refused += 1
        content = (
            f"{len(report.metrics)} points, {len(report.events)} events, "
            f"{len(report.checkpoints)} checkpoints, {len(report.samples)} samples"
        )
        sentence = f"report {report.seq} ({content}) was refused: {reply.message}"
        print(sentence, file=sys.stderr, flush=True)
        if self._refused > _SET_ASIDE_AT_MOST:
            return
        self._outbox.event("ReportRefused", sentence, "error")
        if self.accepted:
            try:
                self._aside.mkdir(parents=True, exist_ok=True)
                (self._aside / f"{report.seq:012d}.json").write_text(report.model_dump_json())
            except OSError as error:
                print(f"it could not be set aside: {error}", file=sys.stderr, flush=True)

    def _drain(self) -> None:
        """Sends the rest and the Finish until the deadline; what is left stays in the spool."""
        # From here on nothing is held in memory alone: the process may be killed at any moment.
        self._keep_all()
        self._report()
        wait = 0.1
        while not self._over and not (self._deliver() and not self._outbox.pending() and self._said_finish()):
            if (left := self._left()) <= 0:
                break
            time.sleep(min(wait, left))
            wait = min(wait * 2, _LONGEST_WAIT)
            self._keep_all()
        self._keep_all()

    def _left(self) -> float:
        """Seconds that the last reports may still take."""
        return min(self._deadline, self._hurried) - time.monotonic()

    def _said_finish(self) -> bool:
        if self._finish is None:
            return True
        # What the control plane will not take, it will not take later either: the cluster tells it the end.
        return self._control.finish(self._finish).verdict is not Verdict.AWAY


def _wish(reply: Reply, asked_at: float) -> Heard:
    answer = reply.answer or Answer()
    return Heard(Word.WISH, desired=answer.desired, asked_at=asked_at)
