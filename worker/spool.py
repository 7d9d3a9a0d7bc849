"""Reports that could not be sent yet, on disk beside the checkpoints, in the order in which they were made.

One file a report, `<seq>.json`, holding exactly the report: whoever shares the store can deliver what is left when the
attempt is over. The spool is bounded. When it is full, each step keeps fewer samples, then fewer steps do, then none;
only after that do curves become coarser, evenly so. Events and checkpoints stay.
"""

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from worker.contract.protocol import Report, Sample

LIMIT_BYTES = 16 * 2**20


class Spool:
    """A queue of reports by their `seq`. While the disk takes nothing, they wait in memory, under the same bound."""

    def __init__(self, folder: Path, limit: int = LIMIT_BYTES):
        """`folder` is made when it is first needed; `limit` is in bytes of JSON, on disk and in memory together."""
        self._folder = folder
        self._limit = limit
        self._thin_above = limit
        self._sizes: dict[int, int] = {}
        self._in_memory: dict[int, Report] = {}
        self.thinned = 0
        """Points given up so far, for want of room."""
        self.samples_thinned = 0
        """Samples given up so far, for want of room."""
        self.lost = 0
        """Reports given up so far: their files could not be read any more."""

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, seq: int) -> bool:
        return seq in self._sizes

    @property
    def bytes(self) -> int:
        """Bytes of JSON in it."""
        return sum(self._sizes.values())

    def add(self, report: Report) -> None:
        """Takes a report, which is told in the order of its `seq`."""
        self._keep(report)
        if self.bytes > self._thin_above:
            self._thin()
            # What is left may be events alone: it would be in vain to thin those at every report.
            self._thin_above = max(self._limit, self.bytes * 5 // 4)

    def oldest(self) -> Report | None:
        """The report to send next; None when there is none."""
        while self._sizes:
            seq = min(self._sizes)
            if (report := self._read(seq)) is not None:
                return report
            self.lost += 1
            self.remove(seq)
        return None

    def remove(self, seq: int) -> None:
        """Forgets a report: it was accepted, or never will be."""
        self._sizes.pop(seq, None)
        self._in_memory.pop(seq, None)
        with contextlib.suppress(OSError):
            self._path(seq).unlink(missing_ok=True)

    def settle(self) -> None:
        """Brings to disk what waits in memory, as far as the disk takes it."""
        for report in list(self._in_memory.values()):
            self._keep(report)
            if report.seq in self._in_memory:
                return

    def _path(self, seq: int) -> Path:
        return self._folder / f"{seq:012d}.json"

    def _read(self, seq: int) -> Report | None:
        if seq in self._in_memory:
            return self._in_memory[seq]
        try:
            return Report.model_validate_json(self._path(seq).read_bytes())
        except (OSError, ValueError):
            return None

    def _keep(self, report: Report) -> None:
        content = report.model_dump_json().encode()
        self._sizes[report.seq] = len(content)
        temporary = self._folder / f".tmp-{report.seq:012d}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self._path(report.seq))
        except OSError:
            self._in_memory[report.seq] = report
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        else:
            self._in_memory.pop(report.seq, None)

    def _thin(self) -> None:
        """Gives up half of the samples, again and again while that does not do; then half of each curve."""
        reports = self._reports()
        # A good part of the room is won at once: all that there is must be read for it.
        while self.bytes > self._limit * 3 // 4 and any(report.samples for report in reports):
            kept = _fewer(sample for report in reports for sample in report.samples)
            for report in reports:
                samples = [sample for sample in report.samples if (sample.step, sample.index) in kept]
                self.samples_thinned += len(report.samples) - len(samples)
                self._replace(report, report.model_copy(update={"samples": samples}), newest=report is reports[-1])
            reports = self._reports()
        if self.bytes > self._limit:
            self._thin_curves(reports)

    def _thin_curves(self, reports: list[Report]) -> None:
        """Halves every curve in the spool: a coarser one, still from end to end."""
        steps: dict[str, list[int]] = defaultdict(list)
        for report in reports:
            for metric in report.metrics:
                steps[metric.name].append(metric.step)
        kept = {name: _every_second(of_curve) for name, of_curve in steps.items()}
        for report in reports:
            metrics = [metric for metric in report.metrics if metric.step in kept[metric.name]]
            self.thinned += len(report.metrics) - len(metrics)
            self._replace(report, report.model_copy(update={"metrics": metrics}), newest=report is reports[-1])

    def _reports(self) -> list[Report]:
        return [report for seq in sorted(self._sizes) if (report := self._read(seq)) is not None]

    def _replace(self, report: Report, thinner: Report, *, newest: bool) -> None:
        if thinner == report:
            return
        # The newest says where the attempt is, whatever else it holds.
        if newest or says_something(thinner):
            self._keep(thinner)
        else:
            self.remove(report.seq)


def says_something(report: Report) -> bool:
    """Whether a report holds more than how far the attempt is, which later ones say too."""
    return bool(report.metrics or report.events or report.checkpoints or report.samples)


def _fewer(samples: Iterable[Sample]) -> set[tuple[int, int]]:
    """The (step, index) of about half: half of what the largest steps have; with one a step, of half the steps."""
    by_step: dict[int, list[int]] = defaultdict(list)
    for sample in samples:
        by_step[sample.step].append(sample.index)
    most = max(map(len, by_step.values())) // 2
    if most:
        return {(step, index) for step, indices in by_step.items() for index in _spread(sorted(indices), most)}
    steps = _every_second(list(by_step))
    if len(steps) == len(by_step):
        # Few and far between: by their rank, so that there are fewer in any case, and none in the end.
        steps = set(sorted(by_step)[1::2])
    return {(step, by_step[step][0]) for step in steps}


def _spread(indices: Sequence[int], most: int) -> Sequence[int]:
    """At most so many of the indices, evenly spaced."""
    if len(indices) <= most:
        return indices
    return [indices[place * len(indices) // most] for place in range(most)]


def _every_second(steps: list[int]) -> set[int]:
    """About half of a curve's steps, evenly spaced from the first to the last.

    Chosen by distance and not by rank: what an earlier thinning made coarse is not thinned again before the rest is.
    """
    ordered = sorted(set(steps))
    distance = 2 * (ordered[-1] - ordered[0]) / len(ordered)
    kept = [ordered[-1]]
    for step in reversed(ordered):
        if kept[-1] - step >= distance:
            kept.append(step)
    return {*kept, ordered[0]}
