"""Terms into one reward: their weighted sum, which is what is shown, and from it what is learnt from.

Give all answers of an iteration, of all ranks and in their order, so that each rank comes to the same.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from worker.contract.rewards import Reward
from worker.errors import Diverged
from worker.rl.statistics import RunningStatistics

# Beyond it squares and sums leave the range of numbers; no reward means anything there.
_MOST = 1e30
# What varies less is rounding: to divide by it would make noise of any size.
_LEAST_STD = 1e-8


def weighted(reward: Reward, terms: Mapping[str, Sequence[float]], ended: Sequence[bool]) -> list[float]:
    """The weighted sum of each answer's terms, with `missing_eos` where it was cut off at the limit.

    `terms` has all of the reward's, the models' too, by their names; `ended` is true for answers that ended by
    themselves. Raises Diverged for a term that is no number, or beyond 1e30: what was learnt from it could not be taken
    back.
    """
    for term in reward.terms:
        for number, value in enumerate(terms[term.title]):
            if not abs(value) <= _MOST:
                raise Diverged(
                    f"the reward's term `{term.title}` is {value} for answer {number + 1} of {len(ended)}; "
                    "nothing was learnt from it"
                )
    each = zip(*([term.weight * value for value in terms[term.title]] for term in reward.terms), strict=True)
    return [
        math.fsum(values) + (0.0 if by_itself else reward.missing_eos)
        for values, by_itself in zip(each, ended, strict=True)
    ]


def scaled(reward: Reward, sums: Sequence[float], seen: RunningStatistics) -> list[float]:
    """Weighted sums as they are learnt from: over the standard deviation of all that were `seen`, then clipped.

    Those at hand should have been seen by then: the first ones have no others to be measured by.
    Nothing is subtracted, or good answers would look bad among better ones. Until sums vary they stay as they are.
    """
    divisor = seen.std if reward.scale == "running" and seen.std > _LEAST_STD else 1.0
    limit = math.inf if reward.clip is None else reward.clip
    return [min(max(value / divisor, -limit), limit) for value in sums]


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The share of prompts on which ours is worth more; a tie counts half."""
    return fmean(float(a > b) + 0.5 * float(a == b) for a, b in zip(ours, theirs, strict=True))
