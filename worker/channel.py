"""A rank's line to its launcher: JSON lines both ways over a socket pair.

Calls cost microseconds, since a thread does the writing. Another thread reads; when the launcher is gone, it ends the
process at once, whatever the process is doing: an attempt without its launcher must not go on.
"""

import contextlib
import json
import math
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from worker.contract.metrics import known
from worker.contract.protocol import Activity, Checkpoint, Event, Exit, Level, Output, Sample
from worker.errors import Stopped, WorkerFailure

Stop = Literal["save", "discard"]
# A line of progress in the log at most this often, in seconds.
LOG_EVERY = 5.0
_FLUSH_WITHIN = 30.0
# Of work that has no steps of its own, a sign at most this often, in seconds.
SIGN_EVERY = 2.0
# A process that took less of a core than this share of the time is waiting, and not working.
_WORKING = 0.01
_LONGEST_MESSAGE = 8192
_LONGEST_LINE = 2**20


class Channel:
    """What a rank tells its launcher, and hears from it. Any thread may call any method."""

    def __init__(self, line: socket.socket, rank: int = 0):
        self.rank = rank
        self._line = line
        self._stop: Stop | None = None
        self._answered = threading.Event()
        self._started = False
        self._asked_to_stop = threading.Event()
        self._gathered: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._outgoing: queue.SimpleQueue[dict[str, Any] | threading.Event] = queue.SimpleQueue()
        self._progress: dict[str, Any] = {}
        self._logged = -math.inf
        self._signed = -math.inf
        threading.Thread(target=self._write, name="channel-writer", daemon=True).start()
        threading.Thread(target=self._read, name="channel-reader", daemon=True).start()

    @classmethod
    def from_environment(cls) -> "Channel":
        """The channel that the launcher gave to this process. Raises KeyError outside of a launcher."""
        line = socket.socket(fileno=int(os.environ["WORKER_CHANNEL_FD"]))
        line.set_inheritable(False)
        return cls(line, rank=int(os.environ["RANK"]))

    @property
    def stop(self) -> Stop | None:
        """What the launcher asked for: to stop after saving, to stop without, or (None) to go on.

        Ranks hear it at different moments: those that compute together must first agree on it.
        """
        return self._stop

    def wait_for_stop(self, seconds: float | None) -> bool:
        """Waits for a wish to stop, `seconds` at most; None: for ever. Gives whether there is one."""
        return self._asked_to_stop.wait(seconds)

    def wait_for_start(self) -> None:
        """Returns once the control plane has accepted this attempt: nothing may be touched before. Raises Stopped."""
        self._answered.wait()
        if not self._started:
            raise Stopped("stopped before it began")

    def report(
        self,
        activity: Activity | None = None,
        step: int | None = None,
        *,
        steps: int | None = None,
        tokens: int | None = None,
        tokens_per_second: float | None = None,
        metrics: dict[str, float] | None = None,
        mark: bool = True,
    ) -> None:
        """Tells how far the attempt is; what is left out stays as it was.

        All ranks may call it: only rank 0's word is passed on, the others' goes into their logs.

        `tokens` counts from the job's first step, and is not an increment. `metrics` are points at `step`, by the names
        of `worker.contract.metrics`; values that are no finite number are left out. `mark=False` says that this is no
        progress: a job without progress is stalled. Raises ValueError for a metric without a name in the table.
        """
        if metrics is not None and (unknown := [name for name in metrics if not known(name)]):
            raise ValueError(f"no such metric in worker.contract.metrics: {', '.join(sorted(unknown))}")
        said = {
            "activity": activity,
            "step": step,
            "steps": steps,
            "tokens": tokens,
            "tokens_per_second": tokens_per_second,
        }
        self._send(
            "report", {k: v for k, v in said.items() if v is not None} | {"metrics": metrics or {}, "mark": mark}
        )

    def going_on(self) -> None:
        """Tells that there is progress within a step, a load or an evaluation. Costs nothing when called too often."""
        now = time.monotonic()
        if now - self._signed >= SIGN_EVERY:
            self._signed = now
            self.report()

    @contextlib.contextmanager
    def working(self, look_every: float = SIGN_EVERY) -> Iterator[None]:
        """A block that is long and cannot say by itself how far it is, such as reading a model.

        It goes on for as long as the process computes, looked at every so many seconds: one that hangs does not.
        """
        done = threading.Event()

        def look() -> None:
            before = time.process_time()
            while not done.wait(look_every):
                now = time.process_time()
                if now - before >= _WORKING * look_every:
                    self.report()
                before = now

        looking = threading.Thread(target=look, name="channel-working", daemon=True)
        looking.start()
        try:
            yield
        finally:
            done.set()
            looking.join()

    def event(self, type: str, message: str, level: Level = "info", step: int | None = None) -> None:
        """Tells a person something: `type` is one CamelCase word. Raises ValueError for another."""
        event = Event(type=type, message=message[:_LONGEST_MESSAGE], level=level, at=datetime.now(UTC), step=step)
        self._send("event", {"event": event.model_dump(mode="json")})

    def sample(self, sample: Sample) -> None:
        """Shows people an answer. All ranks may call it: only rank 0's word is passed on.

        Which answers, and how much of each, is for `worker.samples` to say.
        """
        if self.rank == 0:
            # Made into JSON by the thread that writes: there may be hundreds, of hundreds of tokens each.
            self._send("sample", {"sample": sample})

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Tells of a sealed checkpoint."""
        self._send("checkpoint", {"checkpoint": checkpoint.model_dump(mode="json")})

    def room(self, *, must: bool) -> bool:
        """Waits until the last checkpoint is in the store; False: it is not, and none is to be made until it is.

        With `must` there is always room in the end.
        """
        self._send("room", {"must": must})
        while True:
            try:
                return self._room.get(timeout=SIGN_EVERY)
            except queue.Empty:
                self.going_on()

    def resumed_from(self, step: int) -> None:
        """Tells which step this attempt goes on from."""
        self._send("resumed", {"step": step})

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks of the attempt, by rank, once all have given theirs. For stages without torch."""
        self._send("gather", {"value": value})
        return self._gathered.get()

    def finish(self, outputs: Sequence[Output] = ()) -> None:
        """Tells that the stage is done, and returns when the launcher has been told everything."""
        self._send("finish", {"outputs": [output.model_dump(mode="json") for output in outputs]})
        self.flush()

    def fail(self, failure: WorkerFailure) -> None:
        """Tells why this rank ends, and returns when the launcher has been told everything."""
        message = failure.message[:_LONGEST_MESSAGE]
        self._send("fail", {"exit": int(failure.exit), "reason": failure.reason, "message": message})
        self.flush()

    def flush(self) -> None:
        """Returns when everything said so far has been handed over, or after 30 s."""
        written = threading.Event()
        self._outgoing.put(written)
        written.wait(_FLUSH_WITHIN)

    def _send(self, kind: str, content: dict[str, Any]) -> None:
        self._outgoing.put({"kind": kind, "at": time.time()} | content)

    def _write(self) -> None:
        while True:
            message = self._outgoing.get()
            if isinstance(message, threading.Event):
                message.set()
                continue
            if message["kind"] == "report":
                message["metrics"] = {n: float(v) for n, v in message["metrics"].items() if math.isfinite(v)}
            elif message["kind"] == "sample":
                message["sample"] = message["sample"].model_dump(mode="json")
            # Nor is a log that cannot be written a reason to fall silent.
            with contextlib.suppress(OSError):
                self._log(message)
            if message["kind"] == "report" and self.rank != 0:
                continue
            # A launcher that is gone is the reader's affair.
            with contextlib.suppress(OSError):
                self._line.sendall(json.dumps(message).encode() + b"\n")

    def _read(self) -> None:
        try:
            with self._line.makefile("rb") as lines:
                while line := lines.readline(_LONGEST_LINE):
                    self._hear(json.loads(line))
        finally:
            os._exit(Exit.KILLED)

    def _hear(self, message: dict[str, Any]) -> None:
        if message.get("start"):
            self._started = True
            self._answered.set()
        # What was asked for is never taken back, but a wish to save may become one to discard.
        if (stop := message.get("stop")) is not None and self._stop != "discard":
            self._stop = stop
            self._asked_to_stop.set()
            self._answered.set()
        if "room" in message:
            self._room.put(message["room"])
        if "gathered" in message:
            self._gathered.put(message["gathered"])

    def _log(self, message: dict[str, Any]) -> None:
        """Lines for a person in this rank's log: all events and changes of activity, and progress now and then."""
        match message["kind"]:
            case "event":
                event = message["event"]
                print(f"{event['level']}: {event['type']}: {event['message']}", flush=True)
            case "checkpoint":
                checkpoint = message["checkpoint"]
                print(f"checkpoint of step {checkpoint['step']}: {checkpoint['path']}", flush=True)
            case "report":
                before = dict(self._progress)
                self._progress |= {k: v for k, v in message.items() if k not in ("kind", "at", "mark", "metrics")}
                now = time.monotonic()
                changed = self._progress.get("activity") != before.get("activity")
                if changed or (self._progress != before and now - self._logged >= LOG_EVERY):
                    self._logged = now
                    print(progress_line(self._progress, message["metrics"]), flush=True)


def progress_line(progress: dict[str, Any], metrics: dict[str, float]) -> str:
    """One line of a log: `training step 12/100  loss 2.3100  1,234 tokens/s`."""
    parts = [str(progress.get("activity", "loading"))]
    if "step" in progress:
        steps = progress.get("steps")
        parts[0] += f" step {progress['step']}" + (f"/{steps}" if steps is not None else "")
    if (loss := metrics.get("train/loss", metrics.get("eval/loss"))) is not None:
        parts.append(f"loss {loss:.4f}")
    if (speed := progress.get("tokens_per_second")) is not None:
        parts.append(f"{speed:,.0f} tokens/s")
    return "  ".join(parts)
