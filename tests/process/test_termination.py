"""The termination message: always whole JSON, within what the cluster reads of it."""

from pathlib import Path

import pytest

from worker.contract.protocol import Output, Termination
from worker.termination import TerminationFile, fitted

pytestmark = pytest.mark.quick
LIMIT = 4096


def outputs(count: int) -> list[Output]:
    return [
        Output(kind="model", path=f"jobs/{'j' * 900}/a1/outputs/{n}", bytes=2**40, sha256="0" * 64)
        for n in range(count)
    ]


def told(message: str, count: int = 0) -> Termination:
    # Not checked on the way in: whatever a program says last, the file is to be read.
    return Termination.model_construct(
        outcome="failed",
        reason="WorkerError",
        message=message,
        outputs=outputs(count),
        exit_code=1,
        step=7,
        undelivered=3,
    )


@pytest.mark.parametrize("character", ["a", "\n", '"', "\x01", "é", "\N{HUGGING FACE}"])
@pytest.mark.parametrize("length", [0, 100, 4000, 20_000])
@pytest.mark.parametrize("count", [0, 1, 3, 10])
@pytest.mark.parametrize("limit", [512, LIMIT])
def test_it_fits_and_can_be_read_and_how_the_attempt_ended_is_in_it(
    character: str, length: int, count: int, limit: int
) -> None:
    content = fitted(told(character * length, count), limit)
    assert len(content) <= limit
    read = Termination.model_validate_json(content)
    assert (read.outcome, read.reason, read.exit_code, read.step, read.undelivered) == (
        "failed",
        "WorkerError",
        1,
        7,
        3,
    )
    if limit == LIMIT and length >= 100:
        assert read.message.startswith(character * 100)


def test_what_fits_is_whole() -> None:
    whole = told("a rank was killed " * 50, 1)
    assert Termination.model_validate_json(fitted(whole, LIMIT)) == Termination.model_validate(whole.model_dump())


def test_the_message_is_shortened_before_outputs_are_left_out_and_by_no_more_than_it_must() -> None:
    shortened = Termination.model_validate_json(fitted(told("x" * 20_000, 3), LIMIT))
    assert len(shortened.outputs) == 3
    assert shortened.message.endswith("[…]")
    assert len(fitted(told("x" * 20_000, 3), LIMIT)) > LIMIT - 10
    fewer = Termination.model_validate_json(fitted(told("x" * 20_000, 10), LIMIT))
    assert len(fewer.outputs) == 3
    assert len(fewer.message) >= 300


def test_a_limited_file_is_written_in_place_with_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "termination-log"
    path.touch()
    inode = path.stat().st_ino
    file = TerminationFile(path, LIMIT)
    file.reserve()
    assert list(tmp_path.iterdir()) == [path]
    file.write(told("x" * 20_000))
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_ino == inode
    assert Termination.model_validate_json(path.read_bytes()).exit_code == 1


def test_a_file_without_a_limit_holds_all_of_it_and_comes_whole(tmp_path: Path) -> None:
    path = tmp_path / "exit.json"
    file = TerminationFile(path)
    file.reserve()
    assert not path.exists()
    file.write(told("x" * 8000, 10))
    assert len(Termination.model_validate_json(path.read_bytes()).outputs) == 10
    assert list(tmp_path.iterdir()) == [path]
