"""Where an update's time goes."""

import contextlib
import time
from collections.abc import Callable, Iterator


class Stopwatch:
    """Adds up seconds by name."""

    def __init__(self, settle: Callable[[], None] = lambda: None, seconds: dict[str, float] | None = None):
        """`settle` waits for the accelerator: without it, what it still computes would count for what comes next.

        `seconds` are those that earlier watches have added up.
        """
        self._settle = settle
        self.seconds: dict[str, float] = {} if seconds is None else seconds
        self._began = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the block's seconds to `name`."""
        began = time.perf_counter()
        yield
        self._settle()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    @property
    def elapsed(self) -> float:
        """Seconds since the watch was made."""
        return time.perf_counter() - self._began

    def metrics(self) -> dict[str, float]:
        """The seconds as metrics, `time/<name>`."""
        return {f"time/{name}": seconds for name, seconds in self.seconds.items()}
