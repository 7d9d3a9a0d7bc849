"""What a worker tells the control plane, and hears back. Unknown fields are ignored, so N-1 and N run side by side."""

import math
import re
from datetime import UTC, datetime
from enum import IntEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

VERSION = 1

Activity = Literal["loading", "training", "generating", "scoring", "evaluating", "saving", "stopping"]
Desired = Literal["run", "pause", "cancel"]
Level = Literal["info", "warning", "error"]


class Exit(IntEnum):
    """The exit codes of a worker's launcher; everything else is read as FAILED."""

    DONE = 0
    FAILED = 1
    BAD_SPEC = 2
    BAD_DATA = 3
    DIVERGED = 4
    OUT_OF_MEMORY = 5
    KILLED = 137
    STOPPED = 143


def _relative(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/") or "\\" in path or "\x00" in path:
        raise ValueError("must be a path inside the store, without `..`")
    return path


StorePath = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_relative)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Step = Annotated[int, Field(ge=0, le=2**53)]
# What a database's largest whole numbers hold.
Bytes = Annotated[int, Field(ge=0, le=2**63 - 1)]
_INT4 = 2**31


def _in_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be a time whose year in UTC is between 1 and 9999") from None


At = Annotated[AwareDatetime, AfterValidator(_in_utc)]

# A NUL, and half of a surrogate pair: databases and encodings refuse them, and programs' last words hold anything.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(value: Any) -> Any:
    """Text with U+FFFD for each character that not everything can hold; anything else as it is."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value) if isinstance(value, str) else value


Words = Annotated[str, Field(max_length=8192), BeforeValidator(storable)]
"""What a program says to a person: whatever it holds, it can be stored."""


Piece = Annotated[str, Field(max_length=256), BeforeValidator(storable)]
TermName = Annotated[str, Field(max_length=64), BeforeValidator(storable)]


class Message(BaseModel):
    """A part of a message: unknown fields ignored, no NaN."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Progress(Message):
    """How far the attempt is. `mark` grows with every step, load and save: when it stands still, the job is stalled."""

    step: Step = 0
    steps: Step | None = None
    tokens: Step = 0
    tokens_per_second: Annotated[float, Field(ge=0)] | None = None
    mark: Step = 0


class Metric(Message):
    """One point of one curve. The key is (job, attempt, name, step)."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(/[a-z0-9_.-]+)*$", max_length=64)]
    step: Step
    value: float
    at: At


class Event(Message):
    """Something that a person should read: `type` is one CamelCase word."""

    type: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]*$", max_length=64)]
    message: Words
    level: Level = "info"
    at: At
    step: Step | None = None


class Checkpoint(Message):
    """A whole checkpoint, in place: `path` lies in the attempt's folder of the store, `sha256` is its manifest's.

    `part`: how far within the step after `step` it was made, for stages whose steps are long; 0: between two steps.
    """

    step: Step
    part: Step = 0
    path: StorePath
    bytes: Bytes
    sha256: Sha256
    at: At


class Sample(Message):
    """One answer of a rollout, to be read by people. The key is (job, attempt, step, index)."""

    step: Step
    index: Annotated[int, Field(ge=0, le=2**31)] = Field(description="of the prompt in the iteration")
    prompt: Words
    answer: Words
    tokens: Annotated[list[Piece], Field(max_length=4096)] = Field(default=[], description="the answer's, as text")
    kl: Annotated[list[float], Field(max_length=4096)] = Field(
        default=[], description="nats of each token: log actor - log reference"
    )
    terms: Annotated[dict[TermName, float], Field(max_length=16)] = Field(default={}, description="before weights")
    reward: float = Field(description="the weighted sum")
    ended: bool = Field(description="by itself, and not at the limit")
    at: At


class Report(Message):
    """What a worker says every few seconds, also when it has nothing to say."""

    version: Annotated[int, Field(ge=0, lt=_INT4)] = VERSION
    seq: Annotated[int, Field(ge=1, le=2**53)]
    launcher: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="which process speaks for the attempt: chosen at random when it starts"
    )
    activity: Activity
    progress: Progress = Progress()
    resumed_from: Step | None = Field(
        default=None, description="the step that this attempt went on from, once known; 0: it began anew"
    )
    metrics: Annotated[list[Metric], Field(max_length=2000)] = []
    events: Annotated[list[Event], Field(max_length=200)] = []
    checkpoints: Annotated[list[Checkpoint], Field(max_length=50)] = []
    samples: Annotated[list[Sample], Field(max_length=200)] = []


class Answer(Message):
    """What the control plane wants of the job."""

    desired: Desired = "run"


class Output(Message):
    """What a finished attempt hands over: a folder in the store with a `manifest.json` of this hash."""

    kind: Literal["model", "adapter", "critic", "ema"]
    path: StorePath
    bytes: Bytes
    sha256: Sha256


class Finish(Message):
    """The end of an attempt in the worker's own words; the cluster decides whether the process ended well."""

    outcome: Literal["succeeded", "failed", "stopped"]
    reason: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]*$", max_length=64)]
    message: Words = ""
    outputs: Annotated[list[Output], Field(max_length=10)] = []


class Termination(Finish):
    """The termination message (`exit.json` on one machine): a Finish, and what could not be delivered."""

    exit_code: Annotated[int, Field(ge=-_INT4, lt=_INT4)]
    step: Step | None = None
    undelivered: Step = 0


def finite(values: dict[str, Any]) -> dict[str, float]:
    """The entries that JSON can hold: numbers that are neither NaN nor infinite."""
    return {k: float(v) for k, v in values.items() if math.isfinite(float(v))}


def metrics_at(step: int, values: dict[str, Any], at: datetime) -> list[Metric]:
    """The finite entries of `values` as points of step `step`."""
    return [Metric(name=name, step=step, value=value, at=at) for name, value in finite(values).items()]
