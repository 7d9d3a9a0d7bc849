"""Scores from a service that somebody else runs: it may be away for a while, and it may answer anything at all.

What passes by itself is waited for: no connection, no answer in time, "try later". What does not is the end: a refusal,
or an answer that is not one finite number for each answer. A reward that was guessed would be learnt.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import tenacity

from worker.contract.rewards import ServiceTerm
from worker.errors import BadData, BadSpec, ServiceAway

_LOOK = 0.5  # seconds between two calls of `between`
_LONGEST_WAIT = 10.0  # seconds between two calls of the service
_MOST_BYTES = 16 * 2**20  # of an answer: thousands of scores are less than one
# Not found: what a proxy says while the service behind it is being replaced.
_PASSES = {404, 408, 425, 429}


class _Unanswered(Exception):
    """A call that may succeed when it is made again."""


class Service:
    """POSTs `{"prompts": [...], "answers": [...]}` and wants `{"scores": [...]}`, one finite number an answer.

    A prompt is a text where it is one turn of the user's, else the list of its turns, as in the rows of a data file.
    """

    def __init__(
        self,
        term: ServiceTerm,
        path: str,
        between: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] = lambda _: None,
    ):
        """Connects to nothing yet. Raises BadSpec, naming `path`."""
        self._term, self._between, self._tell = term, between, tell
        try:
            url = httpx.URL(term.service)
        except httpx.InvalidURL as error:
            raise BadSpec(f"{path}.service: {error}") from None
        # A key may stand in the query, and messages are read by many.
        self._name = f"the reward service {url.copy_with(query=None)}"
        self._client: httpx.Client | None = None

    def __call__(self, rows: Sequence[Any], answers: Sequence[str], tokens: Sequence[int]) -> list[float]:
        """A score an answer. Raises BadData for what is no score, ServiceAway when patience is over."""
        found: list[float] = []
        for start in range(0, len(answers), self._term.batch):
            part = slice(start, start + self._term.batch)
            found += self._scores([_prompt(row) for row in rows[part]], list(answers[part]))
        return found

    def _scores(self, prompts: list[Any], answers: list[str]) -> list[float]:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Unanswered),
            wait=tenacity.wait_exponential(multiplier=0.25, max=_LONGEST_WAIT),
            stop=tenacity.stop_before_delay(self._term.patience),
            sleep=self._wait,
            before_sleep=self._waiting,
            reraise=True,
        )
        # In ASCII: JSON's own escapes can say what UTF-8 cannot, half of a surrogate pair.
        content = json.dumps({"prompts": prompts, "answers": answers}).encode()
        try:
            body = retrying(self._call, content)
        except _Unanswered as error:
            raise ServiceAway(
                f"{self._name} {error}, and so all the time for {self._term.patience:g} s, the term's `patience`"
            ) from None
        return self._checked(body, len(answers))

    def _call(self, content: bytes) -> bytes:
        """One call: the answer's body. Raises _Unanswered, BadData."""
        if self._client is None:
            # An allowed service cannot send the worker on to one that is not.
            self._client = httpx.Client(timeout=self._term.timeout, follow_redirects=False)
        deadline = time.monotonic() + self._term.timeout
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        try:
            with self._client.stream("POST", self._term.service, content=content, headers=headers) as response:
                body = b""
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > _MOST_BYTES:
                        raise BadData(f"{self._name} answers with more than {_MOST_BYTES} bytes")
                    # httpx counts its time-out anew with every byte that comes.
                    if time.monotonic() > deadline:
                        raise _Unanswered(f"does not finish its answer in {self._term.timeout:g} s")
        except httpx.TimeoutException:
            raise _Unanswered(f"does not answer in {self._term.timeout:g} s") from None
        except (httpx.RequestError, UnicodeError) as error:  # the latter for hosts whose names cannot be looked up
            raise _Unanswered(f"cannot be reached ({type(error).__name__}: {error})") from None
        status = response.status_code
        if status == httpx.codes.OK:
            return body
        said = f"answers {status}: {body[:500].decode(errors='replace').strip() or response.reason_phrase}"
        if status >= 500 or status in _PASSES:
            raise _Unanswered(said)
        raise BadData(f"{self._name} {said}")

    def _checked(self, body: bytes, wanted: int) -> list[float]:
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            raise BadData(f"{self._name} answers what is not JSON: {body[:200].decode(errors='replace')}") from None
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list):
            raise BadData(f'{self._name} must answer {{"scores": [...]}}')
        if len(scores) != wanted:
            raise BadData(f"{self._name} gives {len(scores)} scores for {wanted} answers")
        for number, score in enumerate(scores, 1):
            if not _finite(score):
                raise BadData(f"{self._name} gives {str(score)[:100]!r} as score {number}; it must be a finite number")
        return [float(score) for score in scores]

    def _waiting(self, state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            self._tell(f"{self._name} {state.outcome.exception()}; it is asked again for {self._term.patience:g} s")

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._between()
            time.sleep(min(left, _LOOK))
        self._between()


def _prompt(row: Any) -> Any:
    """A prompt as a data file has it: a text, or turns."""
    match row.messages:
        case [{"role": "user", "content": text}]:
            return text
        case turns:
            return turns


def _finite(score: Any) -> bool:
    # true is a number to Python, and an integer may be too large to be a float.
    if isinstance(score, bool) or not isinstance(score, int | float):
        return False
    try:
        return math.isfinite(score)
    except OverflowError:
        return False
