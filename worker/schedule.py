"""The learning rate of every update, as a pure function: nothing to store, nothing to restore."""

import math

from worker.contract.parts import Optimizer


def warmup_steps(warmup: float, steps: int) -> int:
    """Updates that warm up. Below 1 `warmup` is a share of `steps`; from 1 on it is a count."""
    return min(steps, round(warmup * steps) if warmup < 1 else int(warmup))


def learning_rate(step: int, *, peak: float, steps: int, optimizer: Optimizer) -> float:
    """The learning rate of update `step` (1 to `steps`).

    It rises by equal parts to `peak`, which the last warm-up step has, and the step after it too; then it stays, or
    falls towards 0, which the step after the last one would have.
    """
    warm = warmup_steps(optimizer.warmup, steps)
    if step <= warm:
        return peak * step / warm
    done = min(1.0, (step - 1 - warm) / max(1, steps - warm))
    match optimizer.schedule:
        case "constant":
            return peak
        case "linear":
            return peak * (1 - done)
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
