"""What the ends of its ranks make of an attempt: the cause counts, and not what follows from it."""

import pytest

from worker.contract.protocol import Output
from worker.outcome import Failure, Outcome, RankEnd, judge

pytestmark = pytest.mark.quick
MODEL = Output(kind="model", path="jobs/j/a1/outputs/model", bytes=1, sha256="0" * 64)


def done(rank: int) -> RankEnd:
    return RankEnd(rank, code=0, at=10.0, finished=True)


def failed(rank: int, exit_code: int, reason: str, at: float = 10.0) -> RankEnd:
    return RankEnd(rank, code=exit_code, at=at, failure=Failure(at, exit_code, reason, f"{reason} here"))


def killed(rank: int, number: int = 9, at: float = 10.0, by_launcher: bool = False) -> RankEnd:
    return RankEnd(rank, code=-number, at=at, killed_by_launcher=by_launcher)


def word(outcome: Outcome) -> tuple[int, str, str]:
    return outcome.exit, outcome.finish.outcome, outcome.finish.reason


def test_all_done_is_a_success_with_its_outputs() -> None:
    outcome = judge([done(0), done(1)], [MODEL], stopping=None)
    assert word(outcome) == (0, "succeeded", "Finished")
    assert outcome.finish.outputs == [MODEL]


def test_a_wish_to_stop_that_races_a_clean_end_is_a_success() -> None:
    assert word(judge([done(0), done(1)], [MODEL], stopping="stopped when asked")) == (0, "succeeded", "Finished")


def test_all_stopped_is_a_stop() -> None:
    ends = [failed(rank, 143, "Stopped") for rank in (0, 1)]
    assert word(judge(ends, [], stopping="stopped when asked")) == (143, "stopped", "Stopped")


def test_a_pause_by_a_guard_is_a_stop_that_says_so_though_nobody_asked() -> None:
    ends = [failed(rank, 143, "PausedByGuard") for rank in (0, 1)]
    assert word(judge(ends, [], stopping=None)) == (143, "stopped", "PausedByGuard")


def test_ranks_killed_by_the_launcher_when_asked_to_stop_are_a_stop() -> None:
    outcome = judge([killed(0, by_launcher=True)], [], stopping="not done within the grace of 3 s")
    assert word(outcome) == (143, "stopped", "Stopped")
    assert outcome.finish.message == "not done within the grace of 3 s"


def test_a_failure_while_stopping_is_a_failure() -> None:
    ends = [failed(0, 1, "StoreFull"), failed(1, 143, "Stopped")]
    assert word(judge(ends, [], stopping="stopped when asked")) == (1, "failed", "StoreFull")


@pytest.mark.parametrize(
    ("exit_code", "reason"), [(2, "InvalidSpec"), (3, "InvalidData"), (4, "Diverged"), (5, "OutOfMemory")]
)
def test_a_failure_with_a_name_comes_before_the_siblings_that_find_it_gone(exit_code: int, reason: str) -> None:
    sibling = failed(0, 1, "WorkerError", at=9.0)
    ends = [sibling, failed(1, exit_code, reason), killed(2, number=6), killed(3, by_launcher=True)]
    outcome = judge(ends, [], stopping=None)
    assert word(outcome) == (exit_code, "failed", reason)
    assert outcome.finish.message.startswith("rank 1: ")


def test_a_killed_rank_comes_before_the_siblings_that_find_it_gone() -> None:
    # A large process takes longer to die than its sibling to see its sockets closed.
    ends = [failed(0, 1, "WorkerError", at=9.0), killed(1, at=9.5), killed(2, by_launcher=True)]
    outcome = judge(ends, [], stopping=None)
    assert word(outcome) == (137, "failed", "Killed")
    assert "rank 1 was killed by SIGKILL" in outcome.finish.message


def test_an_abort_that_follows_a_siblings_error_is_not_the_cause() -> None:
    ends = [failed(0, 1, "WorkerError", at=9.0), killed(1, number=6, at=9.5)]
    assert word(judge(ends, [], stopping=None)) == (1, "failed", "WorkerError")


def test_a_rank_that_crashes_by_itself_is_killed_by_that_signal() -> None:
    outcome = judge([killed(0, number=11), killed(1, by_launcher=True)], [], stopping=None)
    assert word(outcome) == (137, "failed", "Killed")
    assert "SIGSEGV" in outcome.finish.message


def test_a_rank_that_ends_without_a_word_is_a_workers_error() -> None:
    silent = RankEnd(1, code=7, at=10.0)
    outcome = judge([killed(0, by_launcher=True), silent], [], stopping=None)
    assert word(outcome) == (1, "failed", "WorkerError")
    assert "rank 1 ended with code 7" in outcome.finish.message


def test_a_rank_that_leaves_before_it_is_done_is_no_success() -> None:
    assert word(judge([done(0), RankEnd(1, code=0, at=10.0)], [MODEL], stopping=None)) == (1, "failed", "WorkerError")


def test_of_two_failures_the_first_is_the_cause() -> None:
    ends = [failed(0, 4, "Diverged", at=11.0), failed(1, 3, "InvalidData", at=10.0)]
    assert word(judge(ends, [], stopping=None)) == (3, "failed", "InvalidData")
