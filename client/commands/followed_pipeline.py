"""A pipeline as it is seen while it is followed: its steps, their newest numbers and what happened in them."""

import time
from collections import defaultdict, deque
from typing import NamedTuple

from client.api import Client
from client.commands.followed import PATIENCE
from client.problems import Problem, Unreachable
from client.records import Event, Pipeline, Point, Step

_EVENTS_SHOWN = 8
# What tells most of how a stage does; of the others it is the loss.
_HEADLINE = {"ppo": "ppo/reward"}


class Happened(NamedTuple):
    """An event, and the step that it happened in."""

    step: str
    event: Event


class FollowedPipeline:
    """A pipeline as it is seen while it is followed."""

    def __init__(self, client: Client, pipeline: Pipeline):
        self.pipeline = pipeline
        self.events: deque[Happened] = deque(maxlen=_EVENTS_SHOWN)
        self.curves: defaultdict[str, deque[Point]] = defaultdict(lambda: deque(maxlen=400))
        """By step."""
        self.silent_since: float | None = None
        self._client = client
        self._last_event: defaultdict[str, int] = defaultdict(int)
        self._last_point: dict[str, int] = {}
        self._known: dict[str, Step] = {}

    def look(self) -> list[Happened]:
        """Asks for what is new, and gives the new events. A server that is away for a while is waited for.

        Raises Unreachable once it has been away for `PATIENCE` seconds, Problem if the pipeline is gone.
        """
        try:
            pipeline = self._client.pipelines.get(self.pipeline.id)
            found: list[Happened] = []
            for step in pipeline.steps:
                # New events are where their count has grown; points come with progress, or before a phase changes.
                if step.event_count > self._last_event[step.id]:
                    found += self._new_events(step)
                if step != self._known.get(step.id):
                    self._take_points(step)
        except (Unreachable, Problem) as error:
            if isinstance(error, Problem) and error.status < 500:
                raise
            now = time.monotonic()
            self.silent_since = self.silent_since or now
            if now - self.silent_since > PATIENCE:
                raise
            return []
        self.silent_since = None
        self.pipeline = pipeline
        self._known = {step.id: step for step in pipeline.steps}
        found.sort(key=lambda happened: happened.event.at)
        self.events.extend(found)
        return found

    def _new_events(self, step: Step) -> list[Happened]:
        events = self._client.jobs.events(step.id, after=self._last_event[step.id])
        if events:
            self._last_event[step.id] = events[-1].number
        return [Happened(step.step, event) for event in events]

    def _take_points(self, step: Step) -> None:
        if step.started_at is None:
            return
        points = self._client.jobs.metrics(step.id, name=headline(step), after=self._last_point.get(step.id))
        if points:
            self._last_point[step.id] = points[-1].id
            self.curves[step.step].extend(points)

    @property
    def over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.silent_since is None and (self.pipeline.final or self.pipeline.resting)


def headline(step: Step) -> str:
    """The curve that tells most of how a step does."""
    return _HEADLINE.get(step.stage, "train/loss")
