"""What can go wrong with a call, as exceptions whose text a person can act on."""

from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One thing wrong with a request: where (a dotted path, or a file's line), and what would be right."""

    path: str
    message: str


class ApiError(Exception):
    """A call that did not do what it was asked."""


class Unreachable(ApiError):
    """Nobody answers at the server's address, or the answer broke off."""

    def __init__(self, url: str, cause: str):
        super().__init__(f"No control plane answers at {url} ({cause}).")
        self.url = url


class Ambiguous(ApiError):
    """A name that is no job's, or several jobs'."""


class NoObjects(ApiError):
    """A control plane that is not on Kubernetes."""

    def __init__(self) -> None:
        super().__init__("This control plane runs jobs as processes of its machine, and creates no objects.")


class Problem(ApiError):
    """The server's refusal (problem+json, RFC 9457), in its own sentences."""

    def __init__(self, status: int, title: str, detail: str = "", fields: tuple[FieldProblem, ...] = ()):
        sentences = [f"{f.path}: {f.message}" for f in fields]
        # The detail of a single problem is that problem's own sentence; an older server leaves its path out.
        self.repeats = len(fields) == 1 and detail in (sentences[0], fields[0].message)
        super().__init__("; ".join(sentences if self.repeats else [detail or title, *sentences]))
        self.status, self.title, self.detail, self.fields = status, title, detail, fields

    @classmethod
    def of(cls, response: httpx.Response) -> "Problem":
        """The problem in an answer whose status says that there is one. The body must have been read."""
        try:
            body: Any = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            text = response.text.strip()[:500]
            return cls(response.status_code, response.reason_phrase or "refused", text)
        fields = body.get("errors") or ()
        return cls(
            response.status_code,
            str(body.get("title") or response.reason_phrase),
            str(body.get("detail") or ""),
            tuple(
                FieldProblem(str(f.get("path", "")), str(f.get("message", ""))) for f in fields if isinstance(f, dict)
            ),
        )
