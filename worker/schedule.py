"""The learning rate of every update, as a pure function: nothing to store, nothing to restore."""

import math

from worker.contract.parts import Optimizer

# Of `inverse_sqrt` without a warm-up: steps after which the rate has fallen to 1 / sqrt(2).
_SCALE = 10_000


def warmup_steps(warmup: float, steps: int) -> int:
    """Updates that warm up. Below 1 `warmup` is a share of `steps`; from 1 on it is a count."""
    return min(steps, round(warmup * steps) if warmup < 1 else int(warmup))


def learning_rate(step: int, *, peak: float, steps: int, optimizer: Optimizer) -> float:
    """The learning rate of update `step` (1 to `steps`).

    It rises by equal parts to `peak`, which the last warm-up step has, and the step after it too; then it stays, or
    falls towards `floor` times the peak, which the step after the last one would have (`inverse_sqrt`: never).
    """
    warm = warmup_steps(optimizer.warmup, steps)
    if step <= warm:
        return peak * step / warm
    return peak * (optimizer.floor + (1 - optimizer.floor) * _share(step - 1, warm, steps, optimizer))


def _share(done: int, warm: int, steps: int, optimizer: Optimizer) -> float:
    """The share of the peak that is left after `done` updates, 1 to 0."""
    part = min(1.0, (done - warm) / max(1, steps - warm))
    match optimizer.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1 - part
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * part))
        case "inverse_sqrt":
            scale = warm or _SCALE
            return math.sqrt(scale / (done + scale - warm))
        case "wsd":
            falling = max(1, round(optimizer.decay * steps))
            return min(1.0, (steps - done) / falling)
