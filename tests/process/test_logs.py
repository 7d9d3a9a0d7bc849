"""What the ranks print, in the launcher's own output and in files."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.process.attempts import until
from worker.logs import Logs

pytestmark = pytest.mark.quick


@pytest.fixture
def echoed(capfd: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Waits until something has gone out, and gives all that has so far."""
    seen = ""

    def wait_for(words: str) -> str:
        nonlocal seen

        def there() -> bool:
            nonlocal seen
            seen += capfd.readouterr().out
            return words in seen

        until(there, deadline=10, what=words)
        return seen

    return wait_for


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[tuple[Logs, int, Path]]:
    """Logs with an echo, what rank 3 writes to, and its file."""
    logs = Logs(tmp_path / "a1" / "log", echo=True)
    output = logs.output(3)
    logs.start()
    yield logs, output, tmp_path / "a1" / "log" / "rank-3.log"


def test_what_comes_before_the_start_goes_out_at_once_and_into_the_file_after_it(
    rank: tuple[Logs, int, Path], echoed: Callable[[str], str], tmp_path: Path
) -> None:
    logs, output, file = rank
    os.write(output, b"early\n")
    echoed("[rank 3] early\n")
    assert list(tmp_path.iterdir()) == []
    logs.begin()
    until(file.exists, deadline=10)
    until(lambda: file.read_bytes() == b"early\n", deadline=10)
    os.write(output, b"late\nlast, without an end")
    os.close(output)
    logs.close(within=10)
    assert file.read_bytes() == b"early\nlate\nlast, without an end"
    assert echoed("last") == "[rank 3] early\n[rank 3] late\n[rank 3] last, without an end\n"


def test_an_attempt_that_never_began_leaves_no_file(
    rank: tuple[Logs, int, Path], echoed: Callable[[str], str], tmp_path: Path
) -> None:
    logs, output, _ = rank
    os.write(output, b"early\n")
    os.close(output)
    logs.close(within=10)
    assert echoed("early") == "[rank 3] early\n"
    assert list(tmp_path.iterdir()) == []


def test_bars_of_progress_and_endless_lines_go_out_in_lines(
    rank: tuple[Logs, int, Path], echoed: Callable[[str], str]
) -> None:
    logs, output, _ = rank
    os.write(output, b"\r 10 %\r 20 %\r\n" + b"x" * 50_000 + b"\n\nend\n")
    os.close(output)
    logs.close(within=10)
    lines = echoed("end").splitlines()
    assert lines[:2] == ["[rank 3]  10 %", "[rank 3]  20 %"]
    assert all(line.startswith("[rank 3] ") for line in lines)
    assert sum(line.count("x") for line in lines) == 50_000


def test_of_much_that_comes_before_the_start_the_newest_is_kept(rank: tuple[Logs, int, Path]) -> None:
    logs, output, file = rank
    for number in range(40):
        os.write(output, b"%02d" % number * 2**15)
    logs.begin()
    os.close(output)
    logs.close(within=10)
    kept = file.read_bytes()
    assert 2**20 <= len(kept) <= 40 * 2**16
    assert kept.endswith(b"39")


def test_without_an_echo_a_rank_writes_its_file_itself(tmp_path: Path) -> None:
    logs = Logs(tmp_path / "log", echo=False)
    output = logs.output(0)
    logs.start()
    os.write(output, b"said\n")
    os.close(output)
    assert (tmp_path / "log" / "rank-0.log").read_bytes() == b"said\n"
    logs.close(within=10)


def test_a_log_folder_that_cannot_be_made_costs_the_log_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text("no folder")
    output = Logs(tmp_path / "log", echo=False).output(0)
    os.write(output, b"said\n")
    os.close(output)
    assert "the log of rank 0 cannot be written" in capfd.readouterr().err
