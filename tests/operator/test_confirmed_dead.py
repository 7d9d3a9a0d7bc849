"""An attempt on a node that does not answer: nothing follows until somebody says that it is dead."""

import pytest

from api.domain.decide import CleanUp, Collect, Collected, Settle, Stop, confirmed_dead, decide
from api.domain.job import Phase, Reason
from api.domain.observation import Observation
from tests.operator.builders import T0, at, attempt, exited, job

pytestmark = pytest.mark.quick

# One of its pods failed, since it heard no more of the other one.
LOST = Observation(
    exists=True, alive=True, failing=True, uid="u", holds=Reason.NODE_LOST, held="node-2 does not answer"
)
FINISHING = job(Phase.FINISHING, attempt=attempt(accepted_at=T0, confirmed_dead=True))


def test_while_nobody_says_so_it_is_only_asked_to_end() -> None:
    actions = decide(FINISHING, LOST, at(9000), up_since=T0)
    assert isinstance(actions[0], Stop)
    assert not any(isinstance(action, Collect | Settle) for action in actions)


def test_once_it_is_confirmed_its_logs_are_kept_and_the_next_attempt_follows_with_the_clusters_words() -> None:
    seen = confirmed_dead(LOST)
    assert decide(FINISHING, seen, at(9000), up_since=T0) == [Collect()]
    [settled] = decide(FINISHING, seen, at(9000), up_since=T0, collected=Collected())
    assert isinstance(settled, Settle)
    assert settled.outcome.phase is Phase.QUEUED
    assert (settled.outcome.ending.reason, settled.outcome.ending.message) == (Reason.NODE_LOST, LOST.held)
    queued = job(Phase.QUEUED, attempt=attempt(confirmed_dead=True))
    assert decide(queued, None, at(9000), up_since=T0, place=True) == [CleanUp()]


def test_what_is_known_to_be_over_stays_what_it_was() -> None:
    assert confirmed_dead(exited(0)) == exited(0)
