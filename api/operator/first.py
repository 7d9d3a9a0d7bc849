"""Letting the urgent go first: of a burst of jobs all have their place in line before any is furnished."""

import asyncio
import contextlib
from collections.abc import Iterator

# It was quiet for so long: nothing urgent is on its way. And the longest that the rest waits for it. In seconds.
_QUIET, _LONGEST = 0.02, 2.0


class First:
    """Work that is urgent, and work that waits until none of that was seen for a moment."""

    def __init__(self, quiet: float = _QUIET, longest: float = _LONGEST) -> None:
        self._quiet, self._longest = quiet, longest
        self._urgent = 0
        self._last = 0.0

    @contextlib.contextmanager
    def urgent(self) -> Iterator[None]:
        """A block of urgent work."""
        self._urgent += 1
        try:
            yield
        finally:
            self._urgent -= 1
            self._last = asyncio.get_running_loop().time()

    async def after(self) -> None:
        """Returns once nothing urgent is under way, and was not for a moment; or when that lasts too long."""
        clock = asyncio.get_running_loop().time
        until = clock() + self._longest
        while (now := clock()) < until and (self._urgent or now - self._last < self._quiet):  # noqa: ASYNC110 (what is
            # waited for is that nothing happens)
            await asyncio.sleep(self._quiet)
