"""The terms of a reward that need no model."""

from collections.abc import Callable, Sequence
from typing import Protocol

from worker.contract.rewards import ExactMatchTerm, LengthTerm, ModelTerm, RegexTerm, Reward, SentimentTerm, ServiceTerm
from worker.errors import BadData
from worker.rl.rewards.functions import exact_match, length, regex, sentiment
from worker.rl.rewards.service import Service

Score = Callable[[Sequence["Asked"], Sequence[str], Sequence[int]], list[float]]
"""Of prompts, their answers' words and their answers' tokens: a number an answer."""


class Asked(Protocol):
    """What was asked: a row of prompts."""

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns so far, each with `role` and `content`."""

    @property
    def answer(self) -> str | None:
        """The right answer, where the row has one."""


class Terms:
    """Scores answers by functions and services. What reward models say of them is the engines' to tell."""

    def __init__(
        self,
        reward: Reward,
        *,
        max_new_tokens: int,
        between: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] = lambda _: None,
    ):
        """Raises BadSpec for a regular expression or a URL that is none.

        While a service is waited for, `between` is called twice a second, and what it raises passes through. `tell`
        hears a sentence when a service that was there does not answer.
        """
        self._scores: dict[str, Score] = {}
        self.waits = any(isinstance(term, ServiceTerm) for term in reward.terms)
        """Whether a term may keep this rank waiting, while others have theirs."""
        self._compares = [term.title for term in reward.terms if isinstance(term, ExactMatchTerm)]
        for number, term in enumerate(reward.terms):
            path = f"stage.reward.terms.{number}"
            match term:
                case ModelTerm():
                    continue
                case ServiceTerm():
                    score: Score = Service(term, path, between, tell)
                case SentimentTerm():
                    score = sentiment()
                case ExactMatchTerm():
                    score = exact_match
                case LengthTerm():
                    score = length(term.of or max_new_tokens)
                case RegexTerm():
                    score = regex(term.pattern, f"{path}.pattern")
            self._scores[term.title] = score

    def check(self, rows: Sequence[Asked]) -> None:
        """Raises BadData where a term needs what a row has not: before anything is trained."""
        for title in self._compares:
            missing = next((number for number, row in enumerate(rows, 1) if row.answer is None), None)
            if missing is not None:
                raise BadData(
                    f"prompt {missing} has no `answer`, with which the reward's term `{title}` compares; give one in "
                    "every row, or leave the term out"
                )

    def score(self, rows: Sequence[Asked], answers: Sequence[str], tokens: Sequence[int]) -> dict[str, list[float]]:
        """By each term's name a number for each answer, before weights. All three lists are of one length.

        `tokens` counts an answer's tokens, with the one that ends it. Raises BadData for a service that answers what is
        no score, ServiceAway for one that does not answer in its patience.
        """
        return {title: score(rows, answers, tokens) for title, score in self._scores.items()}
