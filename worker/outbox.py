"""What the ranks have said and no report has carried yet: many messages are merged into one report."""

import contextlib
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from worker.contract.protocol import Activity, Checkpoint, Event, Level, Metric, Progress, Report, Sample, metrics_at

# A report stays well below a megabyte, which the control plane takes: longer news goes into several. An event may be
# of any length up to 50 kB, and a sample up to 250 kB, so these are counted by their bytes too.
METRICS_A_REPORT = 1000
EVENTS_A_REPORT = 50
EVENT_BYTES_A_REPORT = 256 * 1024
SAMPLES_A_REPORT = 200
SAMPLE_BYTES_A_REPORT = 256 * 1024
CHECKPOINTS_A_REPORT = 50


_PROGRESS = ("step", "steps", "tokens", "tokens_per_second")


class Outbox:
    """Filled by the launcher's main thread, emptied by the reporter's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._activity: Activity = "loading"
        self._begun = False
        self._progress = Progress()
        self._seq = 0
        self._resumed_from: int | None = None
        self._metrics: list[Metric] = []
        self._events: list[Event] = []
        self._checkpoints: list[Checkpoint] = []
        self._samples: list[Sample] = []
        self.left_over = False
        """Whether there was more than the last report could carry."""

    @property
    def begun(self) -> bool:
        """Whether the ranks have gone beyond loading: from then on there may be something to save."""
        return self._begun

    @property
    def step(self) -> int:
        """The last step heard of; 0: none yet."""
        return self._progress.step

    def hear(self, message: dict[str, Any]) -> None:
        """Takes a rank's message of the kinds report, event, checkpoint, sample and resumed. Others are passed over."""
        with self._lock:
            match message["kind"]:
                case "report":
                    self._hear_report(message)
                case "event":
                    self._events.append(Event.model_validate(message["event"]))
                case "checkpoint":
                    self._checkpoints.append(Checkpoint.model_validate(message["checkpoint"]))
                    self._advance()
                case "sample":
                    self._samples.append(Sample.model_validate(message["sample"]))
                case "resumed":
                    self._resumed_from = message["step"]
                    self._advance(step=message["step"])

    def event(self, type: str, message: str, level: Level = "info") -> None:
        """Takes an event of the launcher's own."""
        with self._lock:
            self._events.append(Event(type=type, message=message[:8192], level=level, at=datetime.now(UTC)))

    def going_on(self) -> None:
        """Takes that there is progress of the launcher's own: what it fetches, or puts into the store."""
        with self._lock:
            self._advance(mark=self._progress.mark + 1)

    def stopping(self) -> None:
        """The attempt is ending: that is what it does, unless a rank says that it saves."""
        with self._lock:
            self._activity = "stopping"

    def pending(self) -> bool:
        """Whether there is news that no report has carried."""
        with self._lock:
            return self._any_news()

    def cut(self) -> Report:
        """The next report, with the oldest news first; each has a higher `seq`."""
        with self._lock:
            self._seq += 1
            told = _that_fit(self._events, EVENTS_A_REPORT, EVENT_BYTES_A_REPORT)
            shown = _that_fit(self._samples, SAMPLES_A_REPORT, SAMPLE_BYTES_A_REPORT)
            report = Report(
                seq=self._seq,
                activity=self._activity,
                progress=self._progress,
                resumed_from=self._resumed_from,
                metrics=self._metrics[:METRICS_A_REPORT],
                events=self._events[:told],
                checkpoints=self._checkpoints[:CHECKPOINTS_A_REPORT],
                samples=self._samples[:shown],
            )
            del self._metrics[:METRICS_A_REPORT]
            del self._events[:told]
            del self._checkpoints[:CHECKPOINTS_A_REPORT]
            del self._samples[:shown]
            self.left_over = self._any_news()
            return report

    def _any_news(self) -> bool:
        return bool(self._metrics or self._events or self._checkpoints or self._samples)

    def _advance(self, **said: Any) -> None:
        before = self._progress.model_dump()
        self._progress = Progress.model_validate(before | {"mark": before["mark"] + 1} | said)

    def _hear_report(self, message: dict[str, Any]) -> None:
        # While the attempt is being ended, only saving is news.
        activity = message.get("activity", self._activity)
        self._begun = self._begun or activity != "loading"
        if self._activity != "stopping" or activity == "saving":
            self._activity = activity
        # A number that is none, such as a speed over no time, must end neither the launcher nor the report.
        with contextlib.suppress(ValueError):
            said = {name: message[name] for name in _PROGRESS if name in message}
            self._advance(**said, mark=self._progress.mark + bool(message["mark"]))
        with contextlib.suppress(ValueError):
            at = datetime.fromtimestamp(message["at"], UTC)
            self._metrics += metrics_at(message.get("step", self._progress.step), message["metrics"], at)


def _that_fit(news: Sequence[Event | Sample], most: int, most_bytes: int) -> int:
    """How many of the oldest news the next report carries: at least one, if there is one."""
    count = size = 0
    for one in news[:most]:
        size += len(one.model_dump_json().encode())
        if count and size > most_bytes:
            break
        count += 1
    return count
