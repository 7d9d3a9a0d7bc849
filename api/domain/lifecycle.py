"""The transition table: the only moves of a job's phase that the database accepts."""

from api.domain.job import Phase

MOVES: dict[Phase, frozenset[Phase]] = {
    Phase.QUEUED: frozenset({Phase.STARTING, Phase.PAUSED, Phase.CANCELLED, Phase.FAILED}),
    Phase.STARTING: frozenset({Phase.RUNNING, Phase.FINISHING}),
    Phase.RUNNING: frozenset({Phase.FINISHING}),
    Phase.FINISHING: frozenset({Phase.SUCCEEDED, Phase.CANCELLED, Phase.FAILED, Phase.PAUSED, Phase.QUEUED}),
    Phase.PAUSED: frozenset({Phase.QUEUED, Phase.CANCELLED}),
    Phase.FAILED: frozenset({Phase.QUEUED}),
    Phase.SUCCEEDED: frozenset(),
    Phase.CANCELLED: frozenset(),
}


class IllegalMove(ValueError):
    """A move that the table does not have: a fault in the operator, never in a job."""


def check(old: Phase, new: Phase) -> None:
    """Raises IllegalMove unless the table has the move."""
    if new not in MOVES[old]:
        raise IllegalMove(f"a job does not go from {old} to {new}")
