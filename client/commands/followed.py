"""A job as it is seen while it is followed: asked for again and again, over restarts of the control plane."""

import time
from abc import ABC, abstractmethod
from collections import deque
from typing import Any, Generic, NamedTuple, TypeVar

from client.api import Client
from client.problems import Problem, Unreachable
from client.records import Event, Job, Pipeline, Point, Step
from worker.contract.spec import STAGES

# For how many seconds nobody may answer.
PATIENCE = 600.0
_EVENTS_SHOWN = 6
New = TypeVar("New")
Told = TypeVar("Told")


def headline(stage: str) -> str:
    """The curve that tells most of how a stage does."""
    if stage == "evaluate":
        return "eval/reward"
    # A newer control plane may have stages that are not known here.
    return getattr(getattr(STAGES.get(stage), "traits", None), "headline", "train/loss")


class News(NamedTuple):
    """What one look found that is new about a job."""

    events: list[Event]
    points: list[Point]


class Seen:
    """What has been seen of one job. To ask changes nothing: a look that fails half-way is as if it had not been."""

    def __init__(self) -> None:
        self.curve: deque[Point] = deque(maxlen=400)
        """The newest points of its headline."""
        self._last_event = 0
        self._last_point: int | None = None
        self._known: tuple[Any, ...] = ()

    def ask(self, client: Client, job: Job | Step) -> News:
        """Asks for what is new since the last `take`, where `job`, just answered, says that there is something.

        Whatever a job did before that answer is then among what is asked for.
        """
        events, points = [], []
        if job.event_count is None or job.event_count > self._last_event:
            events = client.jobs.events(job.id, after=self._last_event)
        if job.event_count is None or self._known != _signs(job):
            points = client.jobs.metrics(job.id, name=headline(job.stage), after=self._last_point)
        return News(events, points)

    def take(self, job: Job | Step, news: News) -> None:
        """Notes what was found."""
        self._known = _signs(job)
        if news.events:
            self._last_event = news.events[-1].number
        if news.points:
            self._last_point = news.points[-1].id
            self.curve.extend(news.points)


def _signs(job: Job | Step) -> tuple[Any, ...]:
    """What changes when there may be new points.

    A point comes with the progress that made it, in one transaction. Those of an attempt that is over may come late,
    without progress, but before the phase changes; so the look that sees the end misses none.
    """
    return job.phase, job.retry_requested, job.attempt, job.progress, job.event_count


class Following(ABC, Generic[New, Told]):
    """Something that is asked for again and again; a server that is away for a while is waited for."""

    silent_since: float | None = None
    """Since when nobody answers, by the monotonic clock."""

    def look(self) -> list[Told]:
        """Asks for what is new, and gives the new events.

        Raises Unreachable once nobody has answered for `PATIENCE` seconds, Problem if what is followed is gone.
        """
        try:
            news = self._ask()
        except (Unreachable, Problem) as error:
            if isinstance(error, Problem) and error.status < 500:
                raise
            now = time.monotonic()
            self.silent_since = self.silent_since or now
            if now - self.silent_since > PATIENCE:
                raise
            return []
        self.silent_since = None
        return self._take(news)

    @property
    @abstractmethod
    def now(self) -> Job | Pipeline:
        """What is followed, as it was at the last look."""

    @property
    def over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.silent_since is None and (self.now.final or self.now.resting)

    @abstractmethod
    def _ask(self) -> New:
        """Asks, and changes nothing: any of the calls may fail."""

    @abstractmethod
    def _take(self, news: New) -> list[Told]:
        """Notes what was found, once all has been answered. Gives the new events."""


class Followed(Following[tuple[Job, News], Event]):
    """A job as it is seen while it is followed: what it is now, the newest points of its curve, its last events."""

    def __init__(self, client: Client, job: Job):
        self.job = job
        self.events: deque[Event] = deque(maxlen=_EVENTS_SHOWN)
        self._client = client
        self._seen = Seen()

    @property
    def curve(self) -> deque[Point]:
        """The newest points of the curve that tells most."""
        return self._seen.curve

    @property
    def now(self) -> Job:
        """The job."""
        return self.job

    def _ask(self) -> tuple[Job, News]:
        job = self._client.jobs.get(self.job.id)
        return job, self._seen.ask(self._client, job)

    def _take(self, news: tuple[Job, News]) -> list[Event]:
        self.job, found = news
        self._seen.take(self.job, found)
        self.events.extend(found.events)
        return found.events
