"""Jobs, attempts and observations as plain values, with what a test does not care about filled in."""

from datetime import UTC, datetime, timedelta
from typing import Any

from api.domain.job import Attempt, Desired, Job, Phase
from api.domain.observation import Observation
from worker.contract.check import parse_spec
from worker.contract.protocol import Termination
from worker.contract.spec import JobSpec

T0 = datetime(2030, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """The time `seconds` after the tests' zero hour."""
    return T0 + timedelta(seconds=seconds)


def spec(**fields: Any) -> JobSpec:
    """A rehearsal."""
    return parse_spec({"stage": {"type": "rehearse"}, **fields})


def attempt(number: int = 1, **fields: Any) -> Attempt:
    """An attempt made at the zero hour."""
    return Attempt(**{"number": number, "object_name": f"job-a-a{number}", "created_at": T0, **fields})


def job(phase: Phase = Phase.RUNNING, **fields: Any) -> Job:
    """A job with an attempt, in a phase that has one; in `running` its first report came at the zero hour."""
    accepted = {"accepted_at": T0, "progressed_at": T0} if phase in (Phase.RUNNING, Phase.FINISHING) else {}
    made = None if phase is Phase.QUEUED else attempt(cleaned=phase not in ACTIVE_PHASES, **accepted)
    given = {
        "id": "job-a", "project_id": "default", "name": "a", "spec": spec(), "phase": phase, "desired": Desired.RUN,
        "reason": None, "priority": 0, "created_at": T0, "phase_since": T0, "attempt": made, **fields,
    }  # fmt: skip
    return Job(**given)


NOW = datetime(2030, 1, 1, tzinfo=UTC).isoformat()
ACTIVE_PHASES = (Phase.STARTING, Phase.RUNNING, Phase.FINISHING)
ALIVE = Observation(exists=True, alive=True)
NOTHING = Observation(exists=False)


def exited(code: int | None, reason: str = "Said", **fields: Any) -> Observation:
    """An attempt that is over, with its last words unless `code` is None."""
    if code is None:
        return Observation(exists=True, reason="Killed", message="its launcher was killed", **fields)
    outcome = {0: "succeeded", 143: "stopped"}.get(code, "failed")
    words = Termination.model_validate({"outcome": outcome, "reason": reason, "message": "words", "exit_code": code})
    return Observation(exists=True, exit_code=code, termination=words, message="words", **fields)


def wishes(**metadata: Any) -> dict[str, Any]:
    """What the small launcher shall do."""
    return {"metadata": {name: str(value) for name, value in metadata.items()}}
