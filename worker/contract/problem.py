"""What is wrong with an input."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input: where (a dotted path) and what would be right."""

    path: str
    message: str
