"""The functions that a reward may name. Each is given prompts, answers and their lengths, as `terms.Score` says."""

from collections.abc import Callable, Sequence
from typing import Any

from worker.errors import BadData, BadSpec

Function = Callable[[Sequence[Any], Sequence[str], Sequence[int]], list[float]]


def sentiment() -> Function:
    """VADER's compound score, -1 (hostile) to 1 (friendly); 0 for no words at all (Hutto and Gilbert, 2014)."""
    # Reads its dictionary of words: only for those who ask for it.
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()

    def score(rows: Sequence[Any], answers: Sequence[str], tokens: Sequence[int]) -> list[float]:
        return [float(analyzer.polarity_scores(answer)["compound"]) for answer in answers]

    return score


def exact_match(rows: Sequence[Any], answers: Sequence[str], tokens: Sequence[int]) -> list[float]:
    """1 where an answer is the row's, blanks around it and the case of letters left aside; else 0."""
    found = []
    for row, answer in zip(rows, answers, strict=True):
        if row.answer is None:
            raise BadData("a prompt has no `answer` to compare with")
        found.append(float(_plain(row.answer) == _plain(answer)))
    return found


def _plain(text: str) -> str:
    return text.strip().casefold()


def length(of: int) -> Function:
    """An answer's tokens as a share of `of` tokens."""

    def score(rows: Sequence[Any], answers: Sequence[str], tokens: Sequence[int]) -> list[float]:
        return [count / of for count in tokens]

    return score


def regex(pattern: str, path: str) -> Function:
    """1 where `pattern` (RE2) is found anywhere in an answer, else 0. Raises BadSpec, naming `path`, for a bad one."""
    import re2

    quiet = re2.Options()
    quiet.log_errors = False
    try:
        compiled = re2.compile(pattern, quiet)
    except re2.error as error:
        said = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise BadSpec(f"{path}: is not a regular expression of RE2 ({said})") from None

    def score(rows: Sequence[Any], answers: Sequence[str], tokens: Sequence[int]) -> list[float]:
        return [float(compiled.search(answer) is not None) for answer in answers]

    return score
