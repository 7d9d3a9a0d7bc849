"""The spool keeps reports while nobody takes them, within its bound."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from tests.disks import small_disk
from worker.contract.protocol import Checkpoint, Event, Metric, Report
from worker.spool import Spool

pytestmark = pytest.mark.quick
AT = datetime(2026, 1, 1, tzinfo=UTC)


def report(seq: int, points: int = 10, events: int = 0) -> Report:
    """A report with the points of `points` steps of two curves."""
    steps = range((seq - 1) * points + 1, seq * points + 1)
    return Report(
        seq=seq,
        activity="training",
        metrics=[Metric(name=n, step=s, value=s / 7, at=AT) for s in steps for n in ("train/loss", "train/lr")],
        events=[Event(type="Resumed", message=f"event {seq}", at=AT) for _ in range(events)],
    )


def drained(spool: Spool) -> list[Report]:
    found = []
    while (oldest := spool.oldest()) is not None:
        found.append(oldest)
        spool.remove(oldest.seq)
    return found


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    with small_disk(tmp_path / "disk", "64k") as place:
        yield place


def test_reports_come_out_as_they_went_in_and_in_their_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    reports = [report(seq) for seq in (1, 2, 5, 10, 11)]
    for one in reports:
        spool.add(one)
    assert len(spool) == 5
    assert drained(spool) == reports
    assert list((tmp_path / "spool").iterdir()) == []


def test_each_report_is_a_file_of_its_own_that_anybody_can_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.add(report(7))
    assert [path.name for path in tmp_path.iterdir()] == ["000000000007.json"]
    assert Report.model_validate_json((tmp_path / "000000000007.json").read_bytes()) == report(7)


def test_nothing_is_made_on_the_disk_before_the_first_report(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    assert spool.oldest() is None
    spool.settle()
    assert list(tmp_path.iterdir()) == []


def test_a_full_spool_thins_curves_from_end_to_end_and_keeps_all_events(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit=20_000)
    for seq in range(1, 61):
        spool.add(report(seq, events=1 if seq % 10 == 0 else 0))
        assert spool.bytes <= 26_000
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) == spool.bytes
    left = drained(spool)
    assert [event.message for one in left for event in one.events] == [f"event {seq}" for seq in range(10, 61, 10)]
    for name in ("train/loss", "train/lr"):
        steps = [metric.step for one in left for metric in one.metrics if metric.name == name]
        assert steps == sorted(set(steps))
        assert (steps[0], steps[-1]) == (1, 600)
        assert len(steps) > 20
        gaps = [after - before for before, after in pairwise(steps)]
        assert max(gaps) <= 8 * 600 / len(steps), "one part of the curve is much coarser than the whole"
    assert sum(len(one.metrics) for one in left) + spool.thinned == 60 * 20


def test_checkpoints_are_never_thinned(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit=10_000)
    for seq in range(1, 21):
        saved = Checkpoint(step=seq, path=f"jobs/j/a1/checkpoints/{seq}", bytes=1, sha256="0" * 64, at=AT)
        spool.add(report(seq).model_copy(update={"checkpoints": [saved]}))
    assert [c.step for one in drained(spool) for c in one.checkpoints] == list(range(1, 21))


def test_a_file_that_cannot_be_read_is_counted_as_lost_and_blocks_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for seq in (1, 2, 3):
        spool.add(report(seq))
    (tmp_path / "000000000001.json").write_text('{"seq": 1, "activ')
    (tmp_path / "000000000002.json").unlink()
    assert [one.seq for one in drained(spool)] == [3]
    assert spool.lost == 2


def test_with_a_full_disk_reports_wait_in_memory_in_their_order(full_disk: Path) -> None:
    spool = Spool(full_disk / "spool")
    spool.add(report(1))
    (full_disk / "ballast").write_bytes(b"")
    with pytest.raises(OSError, match="No space"), (full_disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 1024)
    for seq in (2, 3, 4):
        spool.add(report(seq))
    assert len(spool) == 4
    assert [path.name for path in sorted((full_disk / "spool").iterdir())] == ["000000000001.json"]
    # With room again, what waited is brought to the disk.
    (full_disk / "ballast").unlink()
    spool.settle()
    assert [path.name for path in sorted((full_disk / "spool").iterdir())] == [
        f"00000000000{seq}.json" for seq in (1, 2, 3, 4)
    ]
    assert drained(spool) == [report(seq) for seq in (1, 2, 3, 4)]


def test_what_waits_in_memory_is_bounded_too(full_disk: Path) -> None:
    spool = Spool(full_disk / "spool", limit=100_000)
    for seq in range(1, 301):
        spool.add(report(seq))
        assert spool.bytes <= 130_000
    left = drained(spool)
    assert [one.seq for one in left] == sorted(one.seq for one in left)
    assert left[-1].metrics[-1].step == 3000
