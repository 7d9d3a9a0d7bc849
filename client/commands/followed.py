"""A job as it is seen while it is followed: asked for again and again, over restarts of the control plane."""

import time
from collections import deque
from typing import Any

from client.api import Client
from client.problems import Problem, Unreachable
from client.records import Event, Job, Point

# For how many seconds nobody may answer.
PATIENCE = 600.0
_EVENTS_SHOWN = 6


def _signs(job: Job) -> tuple[Any, ...]:
    """What changes when there may be new points.

    A point comes with the progress that made it, in one transaction. Those of an attempt that is over may come late,
    without progress, but before the phase changes; so the look that sees the end misses none.
    """
    return job.phase, job.retry_requested, job.attempt, job.progress, job.event_count


class Followed:
    """A job as it is seen while it is followed: what it is now, its newest loss, its last events."""

    def __init__(self, client: Client, job: Job):
        self.job = job
        self.events: deque[Event] = deque(maxlen=_EVENTS_SHOWN)
        self.losses: deque[Point] = deque(maxlen=400)
        self.silent_since: float | None = None
        self._client = client
        self._last_event = 0
        self._last_point: int | None = None
        self._known: tuple[Any, ...] = ()

    def look(self) -> list[Event]:
        """Asks for what is new, and gives the new events. A server that is away for a while is waited for.

        Raises Unreachable once it has been away for `PATIENCE` seconds, Problem if the job is gone.
        """
        try:
            # The job first: whatever it did before this answer is then in the events that are asked for next.
            job = self._client.jobs.get(self.job.id)
            events = self._new_events(job)
            points = self._new_points(job)
        except (Unreachable, Problem) as error:
            if isinstance(error, Problem) and error.status < 500:
                raise
            now = time.monotonic()
            self.silent_since = self.silent_since or now
            if now - self.silent_since > PATIENCE:
                raise
            return []
        self.silent_since = None
        self.job = job
        # Only here, when all were answered: what a look that failed had been told is asked for again.
        self._known = _signs(job)
        if events:
            self._last_event = events[-1].number
            self.events.extend(events)
        if points:
            self._last_point = points[-1].id
            self.losses.extend(points)
        return events

    def _new_events(self, job: Job) -> list[Event]:
        if job.event_count is not None and job.event_count <= self._last_event:
            return []
        return self._client.jobs.events(job.id, after=self._last_event)

    def _new_points(self, job: Job) -> list[Point]:
        if job.event_count is not None and self._known == _signs(job):
            return []
        return self._client.jobs.metrics(job.id, name="train/loss", after=self._last_point)

    @property
    def over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.silent_since is None and (self.job.final or self.job.resting)
