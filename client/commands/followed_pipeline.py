"""A pipeline as it is seen while it is followed: its steps, their newest numbers and what happened in them."""

from collections import defaultdict, deque
from typing import NamedTuple

from client.api import Client
from client.commands.followed import Following, News, Seen
from client.records import Event, Pipeline, Point, Step

_EVENTS_SHOWN = 8


class Happened(NamedTuple):
    """An event, and the step that it happened in."""

    step: str
    event: Event


class FollowedPipeline(Following[tuple[Pipeline, dict[str, News]], Happened]):
    """A pipeline as it is seen while it is followed."""

    def __init__(self, client: Client, pipeline: Pipeline):
        self.pipeline = pipeline
        self.events: deque[Happened] = deque(maxlen=_EVENTS_SHOWN)
        self._client = client
        self._seen: defaultdict[str, Seen] = defaultdict(Seen)  # by the job's id

    def curve(self, step: Step) -> deque[Point]:
        """The newest points of the curve that tells most of a step."""
        return self._seen[step.id].curve

    @property
    def now(self) -> Pipeline:
        """The pipeline."""
        return self.pipeline

    def _ask(self) -> tuple[Pipeline, dict[str, News]]:
        pipeline = self._client.pipelines.get(self.pipeline.id)
        return pipeline, {step.id: self._seen[step.id].ask(self._client, step) for step in pipeline.steps}

    def _take(self, news: tuple[Pipeline, dict[str, News]]) -> list[Happened]:
        self.pipeline, found = news
        happened = []
        for step in self.pipeline.steps:
            self._seen[step.id].take(step, found[step.id])
            happened += [Happened(step.step, event) for event in found[step.id].events]
        happened.sort(key=lambda one: one.event.at)
        self.events.extend(happened)
        return happened
