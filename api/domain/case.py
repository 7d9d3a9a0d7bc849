"""A job that is to be explained, and the commands that change how it goes on."""

from dataclasses import dataclass

from api.domain.job import FINAL, Job, Phase


@dataclass(frozen=True, slots=True)
class Case:
    """A job, and what is said of why it does not run, or did not."""

    job: Job
    words: str = ""
    """The cluster's or the worker's own."""
    exit_code: int | None = None
    """Of the attempt that the words are about."""
    kubernetes: bool = False
    pipeline: str | None = None
    """The pipeline that the job is a step of."""

    @property
    def failed(self) -> bool:
        """Whether a person has to act for it to run."""
        return self.job.phase is Phase.FAILED

    def command(self, verb: str) -> str:
        """`rlhf VERB` of this job."""
        return f"`rlhf {verb} {self.job.id}`"


def other_spec(case: Case, *settings: str) -> str:
    """How a job comes to another spec."""
    if case.pipeline is not None:
        before = "" if case.job.phase in FINAL else f"`rlhf pipeline cancel {case.pipeline}`, and "
        return (
            f"A spec never changes, and a pipeline takes no other job's models: change its file, {before}"
            "`rlhf pipeline submit FILE`."
        )
    given = "".join(f" --set {setting}" for setting in dict.fromkeys(settings))
    clone = f"`rlhf clone {case.job.id}{given}` makes a new one"
    if case.job.phase in FINAL:
        return f"A job's spec never changes; {clone}."
    return f"A job's spec never changes: {case.command('cancel')}, and {clone}."


def again(case: Case, once: str = "") -> list[str]:
    """The command that has a failed job go on; nothing for one that goes on by itself."""
    if not case.failed:
        return []
    verb = f"`rlhf pipeline retry {case.pipeline}`" if case.pipeline is not None else case.command("retry")
    return [f"{once}{', ' if once else ''}{verb}: it {begins(case)}."]


def begins(case: Case) -> str:
    """Where the next attempt takes up the work."""
    saved = case.job.newest_checkpoint
    return "begins anew" if saved is None else f"goes on from step {saved}"


def stands(phase: Phase) -> str:
    """A phase as a verb."""
    ended = {Phase.FAILED: "has failed", Phase.SUCCEEDED: "has succeeded", Phase.CANCELLED: "was cancelled"}
    return ended.get(phase, f"is {phase}")
