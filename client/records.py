"""What the control plane answers, typed. Fields of a newer server are kept, and do no harm."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from worker.contract.protocol import Progress

FINAL = frozenset({"succeeded", "failed", "cancelled"})


class Record(BaseModel):
    """One answer. Times are aware, durations seconds, sizes bytes."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Handed(Record):
    """A model that a job has handed over, in short."""

    id: str
    name: str
    version: int
    kind: str


class Job(Record):
    """One run of one stage."""

    id: str
    name: str
    stage: str
    phase: str
    desired: str = "run"
    retry_requested: bool = False
    reason: str | None = None
    fault: str | None = None
    message: str = ""
    attempt: int = 0
    priority: int = 0
    generation: int = 1
    metadata: dict[str, str] = {}
    progress: Progress | None = None
    activity: str | None = None
    event_count: int | None = None
    """The number of its newest event; None: an older server, which does not say."""
    spec: dict[str, Any] = {}
    inputs: dict[str, Any] = {}
    models: list[Handed] = []
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cloned_from: str | None = None
    pipeline_id: str | None = None
    """The pipeline that it is a step of, and `step` its name there."""
    step: str | None = None

    @property
    def ranks(self) -> int:
        """Processes that train."""
        resources = self.spec.get("resources", {})
        return int(resources.get("nodes", 1)) * int(resources.get("per_node", 1))

    @property
    def final(self) -> bool:
        """Whether it is over, for ever or until a retry."""
        return self.phase in FINAL and not self.retry_requested

    @property
    def resting(self) -> bool:
        """Whether it is paused and meant to stay so."""
        return self.phase == "paused" and self.desired == "pause"


class DryRun(Record):
    """What a POST of a spec would make: the spec with its defaults, and what it refers to."""

    spec: dict[str, Any]
    inputs: dict[str, Any]
    manifest: list[dict[str, Any]] | None = None
    """The objects on Kubernetes; None: the control plane runs processes."""


class Attempt(Record):
    """One try at a job."""

    number: int
    created_at: datetime
    accepted_at: datetime | None = None
    ended_at: datetime | None = None
    reason: str | None = None
    fault: str | None = None
    message: str = ""
    exit_code: int | None = None
    resumed_from: int | None = None
    progress: Progress | None = None
    confirmed_dead: bool = False
    """An admin said that nothing of it runs, though the cluster cannot tell."""


class Explanation(Record):
    """Why a job is where it is: a sentence, the facts behind it, and what to do or to type."""

    job: str
    phase: str
    reason: str | None = None
    summary: str
    because: list[str] = []
    todo: list[str] = []


class Event(Record):
    """Something that a person should read. Numbered within its job, without gaps."""

    number: int
    at: datetime
    type: str
    level: Literal["info", "warning", "error"] = "info"
    source: str = ""
    message: str = ""
    attempt: int | None = None
    step: int | None = None


class Point(Record):
    """One point of one curve. `superseded`: a later attempt took the same step again."""

    name: str
    step: int
    value: float
    attempt: int
    at: datetime
    superseded: bool = False
    id: int = 0


class Checkpoint(Record):
    """A whole checkpoint in the store."""

    attempt: int
    step: int
    part: int = 0
    path: str
    bytes: int
    sha256: str
    at: datetime
    pruned_at: datetime | None = None


class File(Record):
    """An uploaded data file. `kind` is what its rows are: `text` or `messages`."""

    id: str
    filename: str
    purpose: str
    kind: str
    rows: int
    bytes: int
    sha256: str
    created_at: datetime


class Model(Record):
    """What a job handed over: a whole model, or an adapter alone."""

    id: str
    name: str
    version: int
    kind: str
    job_id: str
    attempt: int
    bytes: int
    sha256: str
    created_at: datetime
    location: str | None = None
    """Its folder on the control plane's machine."""

    @property
    def reference(self) -> str:
        """What a spec calls it."""
        return f"models/{self.name}@{self.version}" if self.kind == "model" else f"models/{self.id}"


class Sample(Record):
    """One answer of a rollout, and what it is worth. `superseded`: a later attempt made the same step again."""

    id: int
    step: int
    index: int
    """Of the prompt in the iteration."""
    attempt: int
    prompt: str
    answer: str
    tokens: list[str] = []
    """The answer's, as text; of a long answer the first ones."""
    kl: list[float] = []
    """Nats of each token: log actor - log reference."""
    terms: dict[str, float] = {}
    """Of the reward, before their weights."""
    reward: float
    ended: bool = True
    """By itself, and not at the limit."""
    at: datetime
    superseded: bool = False


class LogLine(Record):
    """A part of one rank's log: whole lines."""

    attempt: int = 0
    rank: int
    text: str


class Need(Record):
    """An output of another step that a step takes."""

    path: str
    step: str
    output: str
    job: str


class Step(Record):
    """A step of a pipeline: where its job (`id`) is."""

    step: str
    id: str
    name: str
    stage: str
    needs: list[Need] = []
    phase: str
    desired: str = "run"
    retry_requested: bool = False
    reason: str | None = None
    fault: str | None = None
    message: str = ""
    attempt: int = 0
    progress: Progress | None = None
    activity: str | None = None
    event_count: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    models: list[Handed] = []

    @property
    def final(self) -> bool:
        """Whether it is over, for ever or until a retry."""
        return self.phase in FINAL and not self.retry_requested


class Pipeline(Record):
    """Jobs joined by their outputs; `steps` each after all that it needs."""

    id: str
    name: str
    metadata: dict[str, str] = {}
    phase: str
    created_at: datetime
    finished_at: datetime | None = None
    steps: list[Step]

    @property
    def final(self) -> bool:
        """Whether all steps are over, for ever or until a retry."""
        return self.phase in FINAL

    @property
    def resting(self) -> bool:
        """Whether it is paused and meant to stay so."""
        return self.phase == "paused" and all(step.final or step.desired == "pause" for step in self.steps)

    def step(self, name: str) -> Step:
        """One step by its name. Raises KeyError."""
        return {step.step: step for step in self.steps}[name]


class PipelineDryRun(Record):
    """What a POST of a pipeline would make: its steps in an order that holds, their specs, and what they refer to."""

    name: str
    order: list[str]
    steps: dict[str, dict[str, Any]]
    inputs: dict[str, dict[str, Any]]
