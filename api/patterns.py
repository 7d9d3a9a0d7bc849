"""Regular expressions of rewards: read by the engine that workers will use, before anything starts."""

import re2

from worker.contract.problem import Problem
from worker.contract.rewards import RegexTerm, Reward
from worker.contract.spec import JobSpec


def unfit_patterns(spec: JobSpec) -> list[Problem]:
    """The patterns of a spec's reward that RE2 does not take."""
    reward: Reward | None = getattr(spec.stage, "reward", None)
    found = []
    for number, term in enumerate(reward.terms if reward is not None else []):
        if isinstance(term, RegexTerm) and (wrong := _refused(term.pattern)) is not None:
            said = f"is not a regular expression of RE2 ({wrong}); its syntax has no look-around and no backreference"
            found.append(Problem(f"stage.reward.terms.{number}.pattern", said))
    return found


def _refused(pattern: str) -> str | None:
    """What RE2 has against a pattern, in its own words."""
    quiet = re2.Options()
    quiet.log_errors = False
    try:
        re2.compile(pattern, quiet)
    except re2.error as error:
        return error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
    return None
