"""Cases that run side by side, since each mostly waits, and are then tests of their own."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any


class Cases:
    """Functions that are cases. `begin` starts all, `result` gives or raises what became of one."""

    def __init__(self) -> None:
        self._cases: dict[str, Callable[..., Any]] = {}
        self._running: dict[str, Future[Any]] = {}

    def __call__(self, case: Callable[..., Any]) -> Callable[..., Any]:
        """Registers a case, as a decorator."""
        self.add(case.__name__, case)
        return case

    def add(self, name: str, case: Callable[..., Any]) -> None:
        """Registers a case that has no name of its own."""
        self._cases[name] = case

    @property
    def names(self) -> list[str]:
        """The cases' names, in the order in which they were written."""
        return list(self._cases)

    def begin(self, *given: Any, at_once: int = 6) -> None:
        """Starts all of them, each with `given`; so many run at once."""
        pool = ThreadPoolExecutor(at_once, "case")
        self._running = {name: pool.submit(case, *given) for name, case in self._cases.items()}
        pool.shutdown(wait=False)

    def end(self) -> None:
        """Waits for all that were begun."""
        wait(self._running.values())

    def result(self, name: str) -> Any:
        """What a case returned, once it has; raises what it raised."""
        return self._running[name].result()
