"""Calls to the control plane's worker listener, and what each status means for the attempt."""

import contextlib
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING

from worker.contract.protocol import Answer, Finish, Report

if TYPE_CHECKING:
    import httpx

_CONNECT, _ANSWER = 2.0, 5.0


class Verdict(Enum):
    """What became of a call."""

    ACCEPTED = auto()
    MALFORMED = auto()
    """400, 413, 422: this message will never be taken; others may be."""
    FORBIDDEN = auto()
    """401 with the token as it is now, or 403."""
    OVER = auto()
    """409: the attempt is over."""
    GONE = auto()
    """410: its job is gone, and nothing of it is wanted any more."""
    AWAY = auto()
    """Nobody answered, or somebody who is not the control plane: to be tried again."""


_VERDICTS = {
    200: Verdict.ACCEPTED,
    400: Verdict.MALFORMED,
    401: Verdict.FORBIDDEN,
    403: Verdict.FORBIDDEN,
    409: Verdict.OVER,
    410: Verdict.GONE,
    413: Verdict.MALFORMED,
    422: Verdict.MALFORMED,
}


@dataclass(frozen=True)
class Reply:
    """A verdict, with the answer of an accepted report, or the control plane's own words."""

    verdict: Verdict
    answer: Answer | None = None
    message: str = ""
    at_once: bool = False
    """A kept connection broke, as they do when a server restarts: a new one may do, perhaps to a new address."""


class Control:
    """The control plane as a worker sees it.

    The files with its URL and the token are read again after every failure.
    """

    def __init__(self, url_file: Path, token_file: Path):
        self._url_file = url_file
        self._token_file = token_file
        self._client: httpx.Client | None = None
        self._token = ""

    def report(self, report: Report) -> Reply:
        """Sends a report."""
        return self._post("report", report.model_dump_json().encode())

    def finish(self, finish: Finish) -> Reply:
        """Sends the attempt's last word."""
        return self._post("finish", finish.model_dump_json().encode())

    def _post(self, call: str, body: bytes) -> Reply:
        kept = self._client is not None
        reply = self._try(call, body)
        if reply.verdict is Verdict.FORBIDDEN or (kept and reply.at_once):
            before = self._token
            self._forget()
            with contextlib.suppress(OSError):
                if reply.at_once or self._read_token() != before:
                    reply = self._try(call, body)
        if reply.verdict is not Verdict.ACCEPTED:
            self._forget()
        return reply

    def _try(self, call: str, body: bytes) -> Reply:
        # Imported here, in the reporter's thread: the launcher has started its ranks by then.
        import httpx

        try:
            if self._client is None:
                self._client = self._connect()
            response = self._client.post(f"worker/v1/{call}", content=body)
        except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
            broken = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.TimeoutException)
            return Reply(Verdict.AWAY, message=f"{type(error).__name__}: {error}", at_once=broken)
        verdict = _VERDICTS.get(response.status_code, Verdict.AWAY)
        if verdict is not Verdict.ACCEPTED:
            return Reply(verdict, message=f"{response.status_code} {response.text[:2000]}")
        if call == "finish":
            return Reply(verdict)
        try:
            return Reply(verdict, Answer.model_validate_json(response.content))
        except ValueError:
            return Reply(Verdict.AWAY, message="the answer is not the control plane's")

    def _connect(self) -> "httpx.Client":
        import httpx

        url = self._url_file.read_text().strip()
        self._token = self._read_token()
        return httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
            timeout=httpx.Timeout(_ANSWER, connect=_CONNECT),
            # Reading all authorities' certificates takes longer than the first report may.
            verify=url.startswith("https"),
            trust_env=False,
        )

    def _read_token(self) -> str:
        return self._token_file.read_text().strip()

    def _forget(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
