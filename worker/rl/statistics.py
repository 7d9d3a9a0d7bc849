"""Mean and variance of numbers that come a few at a time, without keeping them."""

import math
from collections.abc import Sequence


class RunningStatistics:
    """Count, mean and variance of all numbers so far (Chan, Golub and LeVeque, 1979, eq. 2.1), in double precision."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0  # summed squared distances from the mean

    def update(self, numbers: Sequence[float]) -> None:
        """Takes in some numbers."""
        if not numbers:
            return
        added = len(numbers)
        mean = math.fsum(numbers) / added
        squares = math.fsum((number - mean) ** 2 for number in numbers)
        distance, count = mean - self.mean, self.count + added
        self._squares += squares + distance**2 * self.count * added / count
        self.mean += distance * added / count
        self.count = count

    @property
    def variance(self) -> float:
        """Of all numbers so far, as a whole population; 0 without any."""
        return self._squares / self.count if self.count else 0.0

    @property
    def std(self) -> float:
        """The standard deviation."""
        return math.sqrt(self.variance)

    def state(self) -> dict[str, float]:
        """All that goes into a checkpoint."""
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def load(self, state: dict[str, float]) -> None:
        """Puts back what `state` gave."""
        self.count, self.mean, self._squares = int(state["count"]), state["mean"], state["squares"]
