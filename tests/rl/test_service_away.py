"""A reward service that is away while a job needs it: nothing is lost, and its owner is still heard."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine import jobs
from tests.engine.jobs import Ended, Plan
from tests.engine.pool import Pool
from tests.rl import ppo_jobs
from tests.rl.test_reward_service import Server


@pytest.fixture(scope="module")
def away() -> str:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        return f"http://127.0.0.1:{gone.getsockname()[1]}/"


def ppo(store: Path, url: str, patience: float, **changes: Any) -> ppo_jobs.Job:
    terms = [{"service": url, "patience": patience}, {"function": "length", "weight": 0.1}]
    return ppo_jobs.ppo(store, **{"stage__reward": {"terms": terms}, "stage__steps": 2} | changes)


@pytest.mark.parametrize("world", [1, 2])
def test_who_gives_up_saves_the_answers_first_and_the_next_attempt_goes_on_with_them(
    one: Pool, two: Pool, tmp_path: Path, away: str, world: int
) -> None:
    pool, spread = (one, two)[world - 1], {"resources": {"per_node": world}}
    first: Ended = pool.run(jobs.attempt, ppo(tmp_path, away, 0.6, **spread), 1)[0]
    assert first.outcome == "ServiceAway" and "cannot be reached" in first.message
    assert "RewardServiceAway" in first.events
    (checkpoint,) = [m["checkpoint"] for m in first.said if m["kind"] == "checkpoint"]
    # All of the rank's answers.
    assert checkpoint["step"] == 0 and checkpoint["part"] == 8 // world
    back = Server()
    try:
        second: Ended = pool.run(jobs.attempt, ppo(tmp_path, back.url, 60.0, **spread), 2)[0]
    finally:
        back.stop()
    assert second.outcome == "Finished", second.message
    assert second.curve("ppo/reward").keys() == {1, 2}
    assert second.resumed_from == 0


@pytest.mark.parametrize("world", [1, 2])
def test_a_stop_is_heard_while_a_service_is_waited_for(
    one: Pool, two: Pool, tmp_path: Path, away: str, world: int
) -> None:
    pool, spread = (one, two)[world - 1], {"resources": {"per_node": world}}
    # The looks of a rollout and of judging its answers are some thirty; waiting looks twice a second.
    plan = Plan(stop_at=48)
    ended: Ended = pool.run(jobs.attempt, ppo(tmp_path, away, 600.0, **spread), 1, plan, timeout=60)[0]
    assert ended.outcome == "Stopped", ended.message
    assert [m["checkpoint"]["part"] > 0 for m in ended.said if m["kind"] == "checkpoint"] == [True]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda asked: {"scores": [1.0] * (len(asked["answers"]) - 1)}, "scores for"),
        (lambda asked: {"scores": [None] * len(asked["answers"])}, "must be a finite number"),
    ],
)
def test_too_few_scores_and_what_is_no_score_end_the_job_before_anything_is_learnt(
    one: Pool, tmp_path: Path, answer: Callable[[Any], Any], says: str
) -> None:
    server = Server()
    server.answer = answer
    try:
        ended: Ended = one.run(jobs.attempt, ppo(tmp_path, server.url, 5.0), 1)[0]
    finally:
        server.stop()
    assert ended.outcome == "InvalidData" and says in ended.message
    assert ended.curve("ppo/reward") == {}


def test_a_service_that_says_nothing_is_told_of_and_given_up(one: Pool, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        terms = [{"service": url, "timeout": 0.2, "patience": 0.8}]
        ended: Ended = one.run(jobs.attempt, ppo_jobs.ppo(tmp_path, stage__reward={"terms": terms}), 1)[0]
    assert ended.outcome == "ServiceAway" and "does not answer in 0.2 s" in ended.message
    assert "does not answer in 0.2 s" in ended.events["RewardServiceAway"]
    assert ended.curve("ppo/reward") == {}
