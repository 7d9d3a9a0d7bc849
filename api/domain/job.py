"""Jobs and attempts as plain frozen values, and the closed lists of their phases, reasons and faults."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from worker.contract.protocol import Termination
from worker.contract.spec import JobSpec


class Phase(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    FINISHING = "finishing"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED})
# An attempt has objects on the cluster in these, and takes a place.
ACTIVE = frozenset({Phase.STARTING, Phase.RUNNING, Phase.FINISHING})


class Desired(StrEnum):
    """What a job's owner wants."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class Fault(StrEnum):
    """Whose failure it was."""

    USER = "user"
    SYSTEM = "system"
    INFRA = "infra"


class Reason(StrEnum):
    """Why a job is in its phase."""

    INVALID_SPEC = "InvalidSpec"
    INVALID_DATA = "InvalidData"
    DIVERGED = "Diverged"
    OUT_OF_MEMORY = "OutOfMemory"
    IMAGE_PULL = "ImagePull"
    UNSCHEDULABLE = "Unschedulable"
    PREEMPTED = "Preempted"
    NODE_LOST = "NodeLost"
    KILLED = "Killed"
    STALLED = "Stalled"
    WORKER_ERROR = "WorkerError"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    DEPENDENCY_FAILED = "DependencyFailed"
    AWAITING_STEP = "AwaitingStep"
    QUOTA_WAIT = "QuotaWait"
    AWAITING_ADMISSION = "AwaitingAdmission"
    BACK_OFF = "BackOff"
    NAME_CONFLICT = "NameConflict"
    FORBIDDEN = "Forbidden"
    NAMESPACE_GONE = "NamespaceGone"
    STORE_FULL = "StoreFull"
    SERVICE_AWAY = "ServiceAway"
    FINISHED = "Finished"
    PAUSED_BY_USER = "PausedByUser"
    PAUSED_BY_GUARD = "PausedByGuard"
    CANCELLED_BY_USER = "CancelledByUser"


FAULTS: dict[Reason, Fault] = {
    Reason.INVALID_SPEC: Fault.USER,
    Reason.INVALID_DATA: Fault.USER,
    Reason.DIVERGED: Fault.USER,
    Reason.OUT_OF_MEMORY: Fault.USER,
    Reason.DEADLINE_EXCEEDED: Fault.USER,
    Reason.IMAGE_PULL: Fault.INFRA,
    Reason.UNSCHEDULABLE: Fault.INFRA,
    Reason.PREEMPTED: Fault.INFRA,
    Reason.NODE_LOST: Fault.INFRA,
    Reason.KILLED: Fault.INFRA,
    Reason.STALLED: Fault.INFRA,
    Reason.STORE_FULL: Fault.INFRA,
    Reason.SERVICE_AWAY: Fault.INFRA,
    Reason.NAME_CONFLICT: Fault.INFRA,
    Reason.FORBIDDEN: Fault.INFRA,
    Reason.NAMESPACE_GONE: Fault.INFRA,
    Reason.WORKER_ERROR: Fault.SYSTEM,
    Reason.DEPENDENCY_FAILED: Fault.USER,
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a job."""

    number: int
    object_name: str
    created_at: datetime
    uid: str | None = None
    accepted_at: datetime | None = None
    ended_at: datetime | None = None
    progressed_at: datetime | None = None
    """When the last new `progress.mark` was reported."""
    reported_at: datetime | None = None
    """When it was last heard of."""
    began_with_step: int | None = None
    """The newest checkpoint of the job when the attempt was made; None: there was none."""
    stopping_since: datetime | None = None
    """When the operator first asked it to stop."""
    stop_reason: Reason | None = None
    """Why the operator ends it (DeadlineExceeded, Stalled, Unschedulable …); None: its owner's wish, or nobody's."""
    termination: Termination | None = None
    reason: Reason | None = None
    message: str = ""
    """What is to be said of `stop_reason`."""
    cleaned: bool = False
    """Its objects are gone, its outcome and logs are kept."""
    confirmed_dead: bool = False
    """An admin says that nothing of it runs any more, though the cluster cannot tell."""


@dataclass(frozen=True, slots=True)
class Need:
    """An output of another step of its pipeline that a job takes, and how that step stands."""

    path: str
    """Where in the job's spec."""
    step: str
    output: str
    job: str
    """The other step's job."""
    phase: Phase
    retried: bool = False
    """It failed, and will be queued again."""
    reason: Reason | None = None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the operator sees it: what it decides from."""

    id: str
    project_id: str
    name: str
    spec: JobSpec
    phase: Phase
    desired: Desired
    reason: Reason | None
    priority: int
    created_at: datetime
    phase_since: datetime
    message: str = ""
    attempt: Attempt | None = None
    """The current one: the newest."""
    fruitless: int = 0
    """Attempts in a row that made no newer checkpoint."""
    worker_errors: int = 0
    """Attempts that ended as WorkerError since the last retry."""
    ran_for: float = 0.0
    """Seconds of running, over the attempts that are over."""
    not_before: datetime | None = None
    retry_requested: bool = False
    newest_checkpoint: int | None = None
    """The step of the newest checkpoint of any attempt."""
    saved: bool = False
    """Whether the current attempt has made a checkpoint: each is newer than what the attempt began with."""
    live_checkpoints: int = 0
    """Checkpoints of all attempts that were not pruned."""
    deleted: bool = False
    needs: tuple[Need, ...] = ()
    """What it waits for; empty once all of that is there, and its inputs are known."""
