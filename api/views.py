"""What callers are shown: the JSON shapes of everything the API answers with."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema

from api.domain.job import FINAL, Desired, Fault, Phase, Reason
from api.domain.pipeline import Standing, phase_of
from api.store.tables import JobRow, ModelRow, PipelineRow
from worker.contract.order import Input
from worker.contract.protocol import Activity, Level, Progress, Termination
from worker.contract.rows import RowKind


def _rfc3339(at: datetime) -> str:
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


Time = Annotated[datetime, PlainSerializer(_rfc3339, when_used="json")]
# Already checked when it was stored: shown as it is, described (by api.openapi) as what it is.
Spec = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "title": "JobSpec"})]
Item = TypeVar("Item")


class View(BaseModel):
    """Made from a row by the names of its columns."""

    model_config = ConfigDict(from_attributes=True)


class Page(View, Generic[Item]):
    """A part of a list. `next`, given as `after`, leads to the part that follows; null: this was the last."""

    data: list[Item]
    next: str | None = None


class OutputModel(View):
    """A model that a job has handed over."""

    id: str
    name: str
    version: int
    kind: str


class NeedView(View):
    """An output of another step that a job takes."""

    path: str = Field(description="where in the spec", examples=["stage.actor.model"])
    step: str
    output: str
    job: str = Field(description="the other step's job")


class JobView(View):
    """A job, whole."""

    id: str = Field(examples=["job-k3v7qd2mzxna"])
    name: str
    stage: str
    phase: Phase
    phase_since: Time
    reason: Reason | None = Field(description="why it is in its phase")
    fault: Fault | None = Field(description="whose failure it was")
    message: str = Field(description="a sentence for a person")
    desired: Desired = Field(description="what its owner wants")
    retry_requested: bool = Field(description="it failed, and will be queued again in a moment")
    priority: int
    attempt: int = Field(description="the number of the newest attempt; 0: none yet")
    progress: Progress | None
    activity: Activity | None
    event_count: int = Field(description="the number of its newest event: there are new ones where this has grown")
    metadata: dict[str, str]
    spec: Spec = Field(description="with all defaults filled in; durations in seconds")
    inputs: dict[str, Input] = Field(description="what the spec's references were resolved to")
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    generation: int = Field(description="counts the changes that its owner made")
    cloned_from: str | None
    pipeline_id: str | None = Field(description="the pipeline that it is a step of")
    step: str | None = Field(description="its name there")
    needs: list[NeedView] = Field(description="what it takes of other steps; while they are not over, it waits")
    models: list[OutputModel] = Field(description="what it has handed over")

    @classmethod
    def of(cls, row: JobRow, models: list[OutputModel]) -> "JobView":
        """The view of a row."""
        return cls.model_validate({**vars(row), "metadata": row.metadata_, "models": models})

    @property
    def etag(self) -> str:
        """`"<generation>.<hash>"`: If-Match looks at the generation alone, which reports do not change; If-None-Match
        at the whole, so that a 304 is never said of a job that has moved on."""
        return self.tagged(self.model_dump_json().encode())

    def tagged(self, document: bytes) -> str:
        """The ETag, for who has the view's JSON already."""
        return f'"{self.generation}.{hashlib.sha256(document).hexdigest()[:12]}"'


class StepView(View):
    """A step of a pipeline: where its job is."""

    step: str
    id: str = Field(description="of its job", examples=["job-k3v7qd2mzxna"])
    name: str = Field(description="of its job, and of what that hands over")
    stage: str
    needs: list[NeedView]
    phase: Phase
    phase_since: Time
    reason: Reason | None
    fault: Fault | None
    message: str
    desired: Desired
    retry_requested: bool
    attempt: int
    progress: Progress | None
    activity: Activity | None
    event_count: int
    started_at: Time | None
    finished_at: Time | None
    models: list[OutputModel]


class PipelineView(View):
    """A pipeline with its steps."""

    id: str = Field(examples=["pipe-k3v7qd2mzxna"])
    name: str
    metadata: dict[str, str]
    phase: Phase = Field(description="follows from its steps: final when all of them are")
    created_at: Time
    finished_at: Time | None = Field(description="when the last step was over")
    steps: list[StepView] = Field(description="each after all that it needs")

    @classmethod
    def of(cls, row: PipelineRow, steps: Sequence[JobRow], models: Mapping[str, Sequence[ModelRow]]) -> "PipelineView":
        """The view of a row, its steps and what these have handed over."""
        phase = phase_of(
            Standing(Phase(s.phase), retried=s.retry_requested, waiting=s.waiting, started=s.started_at is not None)
            for s in steps
        )
        ends = [step.finished_at for step in steps if step.finished_at is not None]
        return cls.model_validate(
            {
                **vars(row),
                "metadata": row.metadata_,
                "phase": phase,
                "finished_at": max(ends) if phase in FINAL and ends else None,
                "steps": [{**vars(step), "models": models.get(step.id, [])} for step in steps],
            }
        )


class PipelineDryRun(View):
    """What a POST of this pipeline would have made."""

    name: str
    order: list[str] = Field(description="the steps, each after all that it needs")
    steps: dict[str, dict[str, Any]] = Field(description="the specs with all defaults filled in")
    inputs: dict[str, dict[str, Input]] = Field(description="by step, what its references to all but steps lead to")


class DryRun(View):
    """What a POST of this spec would have made."""

    spec: Spec
    inputs: dict[str, Input]
    manifest: list[dict[str, Any]] | None = Field(
        default=None,
        description="the objects that its first attempt would be made of on Kubernetes, with sentences in the place of "
        "what is secret; null: this control plane runs processes of its own machine",
    )


class AttemptView(View):
    """One try at a job."""

    number: int
    object_name: str
    uid: str | None
    created_at: Time
    accepted_at: Time | None = Field(description="when its first report was answered")
    ended_at: Time | None
    reported_at: Time | None
    progressed_at: Time | None
    began_with_step: int | None = Field(description="the newest checkpoint of the job when it began")
    resumed_from: int | None = Field(description="the step it went on from, in its own words")
    exit_code: int | None
    reason: Reason | None
    fault: Fault | None
    message: str
    progress: Progress | None
    termination: Termination | None = Field(description="its last words")
    confirmed_dead: bool = Field(description="an admin said that nothing of it runs, though the cluster cannot tell")


class ExplanationView(View):
    """Why a job is where it is, in sentences."""

    job: str = Field(description="its id")
    phase: Phase
    reason: Reason | None
    summary: str = Field(description="one sentence")
    because: list[str] = Field(
        description="the facts, with the cluster's and the worker's own words in quotation marks"
    )
    todo: list[str] = Field(description="what to change, or to type; empty where there is nothing to do")


class EventView(View):
    """Something that a person should read."""

    number: int = Field(description="counts from 1 within the job, without a gap")
    at: Time
    type: str = Field(examples=["CheckpointSaved"])
    level: Level
    source: str = Field(description="api, operator or worker")
    message: str
    attempt: int | None
    step: int | None


class MetricView(View):
    """One point of one curve."""

    id: int = Field(description="grows within the job; an SSE id")
    name: str = Field(examples=["train/loss"])
    step: int
    value: float
    at: Time
    attempt: int
    superseded: bool = Field(description="a later attempt went on from before this step, and made it again")


class Reduced(View):
    """How much of a curve is shown."""

    name: str
    points: int = Field(description="that there are between the steps asked for")
    shown: int


class MetricPage(Page[MetricView]):
    """Points. Where curves were reduced, it is said of each."""

    reduced: list[Reduced] | None = Field(default=None, description="with `downsample`: all curves that are shown")


class SampleView(View):
    """One answer of a rollout."""

    id: int = Field(description="grows within the job; an SSE id")
    step: int = Field(description="the iteration")
    index: int = Field(description="of the prompt in the iteration")
    attempt: int
    prompt: str
    answer: str
    tokens: list[str] = Field(description="the answer's, as text; of a long answer the first ones")
    kl: list[float] = Field(description="nats of each token: log actor - log reference")
    terms: dict[str, float] = Field(description="of the reward, before their weights")
    reward: float = Field(description="their weighted sum")
    ended: bool = Field(description="by itself, and not at the limit")
    at: Time
    superseded: bool = Field(description="a later attempt went on from before this step, and made it again")


class LogLine(View):
    """A part of a log, as a server-sent event carries it: whole lines."""

    attempt: int
    rank: int
    text: str


class CheckpointView(View):
    """A checkpoint in the store."""

    attempt: int
    step: int
    part: int = Field(description="how far within the step after this one; 0: between two steps")
    path: str
    bytes: int
    sha256: str = Field(description="of its manifest")
    at: Time
    pruned_at: Time | None = Field(description="when it was removed for newer ones")


class FileView(View):
    """An uploaded data file."""

    id: str
    filename: str
    purpose: str
    kind: RowKind = Field(description="what its rows are")
    rows: int
    bytes: int
    sha256: str
    created_at: Time


class ModelView(View):
    """A registered model."""

    id: str
    name: str
    version: int
    kind: str = Field(description="`model` stands on its own; `adapter` is a LoRA adapter for its base")
    job_id: str
    attempt: int
    bytes: int
    sha256: str = Field(description="of its manifest")
    created_at: Time
    location: str | None = Field(default=None, description="its folder, on the control plane's machine or in a bucket")


class LineageView(ModelView):
    """A model, and what it was made from."""

    lineage: dict[str, Any]


class ModelFile(View):
    """One file of a model."""

    path: str
    bytes: int
    sha256: str


class StreamEnd(View):
    """The last event of a stream: the job is final, and everything was sent."""

    phase: Phase
