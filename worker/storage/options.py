"""How an object store is spoken to."""

from collections.abc import Callable
from dataclasses import dataclass

_MIB = 2**20


@dataclass(frozen=True)
class Options:
    """Sizes, counts and times. The credentials are the AWS_* variables', or the machine's own identity."""

    part_bytes: int = 16 * _MIB
    """What is larger goes in parts of this size, or of a larger one where there would be too many."""
    at_once: int = 4
    """Parts or files that are on their way at the same time: so many parts are in memory."""
    patience: float = 60.0
    """Seconds that a call is tried again while nobody answers, or who answers has trouble; 0: it is tried once."""
    given_up: Callable[[], bool] = lambda: False
    """Whether to stop trying at once, asked before each try again."""
    moved: Callable[[], None] = lambda: None
    """Called by whichever thread it was, each time that content was put or read. A store that lists and takes nothing
    comes no further."""
    connect_timeout: float = 5.0
    read_timeout: float = 30.0
