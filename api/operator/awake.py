"""Since when the control plane can have heard everybody: not while it was frozen, nor while the machine slept."""

from datetime import datetime


class Awake:
    """Compares two clocks each time it is asked.

    A monotonic clock stands still while the machine sleeps, and the wall clock is set by hand: only where both have run
    on by less than `silence` seconds was there nothing between two questions that kept workers from being heard.
    """

    def __init__(self, silence: float, clock: float, now: datetime) -> None:
        self._silence = silence
        self._since = self._now = now
        self.clock = clock
        """When it was last asked, by the monotonic clock in seconds."""

    def since(self, clock: float, now: datetime) -> datetime:
        """Since when nobody was kept from reporting, at the time `now`; `clock` is the monotonic one in seconds."""
        ran = clock - self.clock
        # Set back, the wall clock would make the time since then count for nothing.
        if ran > self._silence or abs((now - self._now).total_seconds() - ran) > self._silence:
            self._since = now
        self.clock, self._now = clock, now
        return self._since
