"""What was asked, and what was measured: a table, and whether all of it holds."""

import math
import statistics
from dataclasses import dataclass, field


def quantiles(seconds: list[float]) -> str:
    """p50, p95, p99 and the largest, in milliseconds."""
    if not seconds:
        return "nothing"
    p50, p95, p99 = (1000 * quantile(seconds, share) for share in (0.5, 0.95, 0.99))
    return f"p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f}, max {1000 * max(seconds):.0f} ms ({len(seconds)})"


def quantile(seconds: list[float], share: float) -> float:
    """Of `seconds`, such that `share` of them are at most as large; infinite where there are none."""
    if len(seconds) < 2:
        return seconds[0] if seconds else math.inf
    return statistics.quantiles(seconds, n=1000, method="inclusive")[round(share * 1000) - 1]


@dataclass
class Table:
    """Rows as they are measured; each is printed at once. `untimed`: nothing is missed for being slow."""

    untimed: bool = False
    missed: list[str] = field(default_factory=list)

    def head(self, text: str) -> None:
        """The sizes of what follows."""
        print(f"\n{text}", flush=True)

    def note(self, what: str, measured: object) -> None:
        """A figure of which nothing is asked."""
        print(f"  {what:<44} {'':<18} {measured}", flush=True)

    def check(self, what: str, asked: str, measured: object, holds: bool) -> None:
        """A figure that is to hold."""
        print(f"  {what:<44} {asked:<18} {measured}{'' if holds else '   MISSED'}", flush=True)
        if not holds:
            self.missed.append(what)

    def timed(self, what: str, asked: str, measured: object, holds: bool) -> None:
        """A figure that is to hold, on a machine that has nothing else to do."""
        before = list(self.missed)
        self.check(what, asked, measured, holds)
        if self.untimed:
            self.missed = before
