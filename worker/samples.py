"""Which answers of an iteration are shown to people, and what of each. Imports no torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate

from worker.contract.ppo import Samples
from worker.contract.protocol import Sample

LONGEST_TEXT = 8192
"""Characters of a prompt, of an answer, and of all its tokens together."""
MOST_TOKENS = 4096
_LONGEST_PIECE = 256
_DIGITS = 6


def chosen(budget: Samples, *, step: int, steps: int, count: int) -> list[int]:
    """Which of the `count` answers of iteration `step` (from 1, of `steps`) are shown, as their indices in order.

    They are spread evenly over the iteration, and the whole budget over the iterations; of the first there is at least
    one. A pure function: an iteration that is made again shows the same ones.
    """
    share = min(budget.per_step, _up_to(budget.total, step, steps) - _up_to(budget.total, step - 1, steps), count)
    return [place * count // share for place in range(share)]


def _up_to(total: int, step: int, steps: int) -> int:
    """How many of `total` belong to the iterations up to `step`."""
    return -(-total * min(step, steps) // steps)


def shown(
    *,
    step: int,
    index: int,
    prompt: str,
    answer: str,
    reward: float,
    ended: bool,
    terms: Mapping[str, float] | None = None,
    tokens: Sequence[str] = (),
    kl: Sequence[float] = (),
) -> Sample:
    """One answer as people see it. What is too long loses its middle or its end; a cut is marked by `…`.

    `tokens` are the answer's as text, `kl` their nats (log actor - log reference), as many. Terms that are no finite
    number are left out, and a token's nats are then 0. Raises ValueError for a reward that is none.
    """
    if len(tokens) != len(kl):
        raise ValueError(f"{len(tokens)} tokens have {len(kl)} nats")
    pieces = [piece[:_LONGEST_PIECE] for piece in tokens[:MOST_TOKENS]]
    fit = sum(length <= LONGEST_TEXT for length in accumulate(map(len, pieces)))
    return Sample(
        step=step,
        index=index,
        prompt=_without_middle(prompt),
        answer=answer if len(answer) <= LONGEST_TEXT else answer[: LONGEST_TEXT - 1] + "…",
        tokens=pieces[:fit],
        # Six digits: nobody reads more, and a report is half as long.
        kl=[round(value, _DIGITS) if math.isfinite(value) else 0.0 for value in kl[:fit]],
        terms={name: value for name, value in (terms or {}).items() if math.isfinite(value)},
        reward=reward,
        ended=ended,
        at=datetime.now(UTC),
    )


def pieces(decode: Callable[[list[int]], str], ids: Sequence[int]) -> list[str]:
    """The text of each token; together they are the text of all.

    `decode` should keep special tokens. What takes several tokens, as a rare character may, belongs to the last of
    them. Tokens are decoded with those before them: by itself a token may lose its blank.
    """
    found: list[str] = []
    before, told = 0, 0
    for end in range(1, len(ids) + 1):
        known, text = decode(list(ids[before:told])), decode(list(ids[before:end]))
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):
            found.append("")
        else:
            found.append(text[len(known) :])
            before, told = told, end
    return found


def _without_middle(text: str) -> str:
    """A prompt begins with what it is about, and ends with what is asked."""
    half = LONGEST_TEXT // 2
    return text if len(text) <= LONGEST_TEXT else f"{text[: half - 1]}…{text[-half:]}"
