"""How much a project's active jobs may have together: who starts within it, and what the others are told. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from api.domain.job import ACTIVE, Job


@dataclass(frozen=True, slots=True)
class Limit:
    """What a project's active jobs may have at a time; None: as much as there is."""

    project: str
    """Its name."""
    jobs: int | None = None
    accelerators: int | None = None


def accelerators(job: Job) -> int:
    """How many accelerators a job asks for."""
    wanted = job.spec.resources
    return wanted.nodes * wanted.per_node if wanted.accelerator != "none" else 0


class Ledger:
    """What is left to each project, of which jobs take in turn. `limits` are by the project's id."""

    def __init__(self, limits: Mapping[str, Limit], jobs: Iterable[Job]) -> None:
        self._limits = limits
        self._jobs: defaultdict[str, int] = defaultdict(int)
        self._accelerators: defaultdict[str, int] = defaultdict(int)
        self._closed: set[str] = set()
        for job in jobs:
            if job.phase in ACTIVE and job.project_id in limits:
                self._take(job)

    def admit(self, job: Job) -> str | None:
        """Takes what the job asks for, where that is left. Gives what it waits for; None: it may start.

        Those who come after one that waits wait too, or it would wait for as long as smaller ones come.
        """
        limit = self._limits.get(job.project_id)
        if limit is None:
            return None
        wanted, taken = accelerators(job), self._accelerators[job.project_id]
        if limit.accelerators is not None and wanted > limit.accelerators:
            # However long it waits: so nobody waits behind it.
            return (
                f"it asks for {_accelerators(wanted)}, and project {limit.project} may have {limit.accelerators} in all"
            )
        if limit.jobs is not None and self._jobs[job.project_id] >= limit.jobs:
            said = f"project {limit.project} has all the active jobs that it may: {limit.jobs}"
        elif limit.accelerators is not None and wanted and taken + wanted > limit.accelerators:
            has = f"{taken} of the {limit.accelerators} that it may"
            said = f"it asks for {_accelerators(wanted)}, and project {limit.project} has {has}"
        elif job.project_id in self._closed:
            said = f"it comes after one of project {limit.project} that waits for its quota"
        else:
            self._take(job)
            return None
        self._closed.add(job.project_id)
        return said

    def _take(self, job: Job) -> None:
        self._jobs[job.project_id] += 1
        self._accelerators[job.project_id] += accelerators(job)


def _accelerators(number: int) -> str:
    return "1 accelerator" if number == 1 else f"{number} accelerators"
