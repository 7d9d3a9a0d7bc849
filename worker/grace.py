"""The time that an attempt has once it is asked to end: whoever asked kills it after that."""

import math
import time

# What of it is kept for the last reports: a share of it, and at most these seconds.
_KEPT_SHARE, _KEPT_SECONDS = 0.2, 5.0


class Grace:
    """It runs from the first time that it is begun."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._ends_at = math.inf

    @property
    def begun(self) -> bool:
        """Whether it runs."""
        return self._ends_at < math.inf

    @property
    def work_until(self) -> float:
        """When, by the monotonic clock, the work must be done, so that the last reports fit in too."""
        return self._ends_at - min(_KEPT_SHARE * self.seconds, _KEPT_SECONDS)

    @property
    def left(self) -> float:
        """Seconds until its end."""
        return max(0.0, self._ends_at - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether no more work fits in."""
        return time.monotonic() >= self.work_until

    def begin(self) -> None:
        """Lets it run, unless it does."""
        if not self.begun:
            self._ends_at = time.monotonic() + self.seconds
