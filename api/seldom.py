"""Warnings about requests: of what is refused a thousand times a minute, the log has one line, with the number."""

import logging
import math
import time

# Seconds between two lines of one kind.
QUIET = 60.0


class Seldom:
    """Warnings of a few kinds."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._told: dict[str, tuple[float, int]] = {}

    def warning(self, kind: str, message: str) -> None:
        """Tells it, unless one of this kind was told a moment ago; then the next one tells how many there were."""
        now = time.monotonic()
        at, untold = self._told.get(kind, (-math.inf, 0))
        if now < at + QUIET:
            self._told[kind] = (at, untold + 1)
            return
        self._told[kind] = (now, 0)
        self._log.warning("%s%s", message, f" (and {untold} times more since that was last said)" if untold else "")
