"""HTTP with patience: a call that may be repeated safely is repeated until the server answers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

from client.problems import Problem, Unreachable

Answer = TypeVar("Answer")
Params = dict[str, Any]

# A gateway's word that the server behind it does not answer now.
PASSING = frozenset({502, 503, 504})


def _passing(error: BaseException) -> bool:
    return isinstance(error, Unreachable) or (isinstance(error, Problem) and error.status in PASSING)


class Transport:
    """One connection pool to one server.

    `key` is an API key, which a redirect takes nowhere else; `project` is the one that an admin means.
    `timeout` is in seconds, for each wait on the network. `patience` is how long, in seconds, a call that may be
    repeated is repeated when nobody answers; 0 tries once.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        project: str | None = None,
        timeout: float = 30.0,
        patience: float = 15.0,
    ):
        self.url = url.rstrip("/")
        self.patience = patience
        # Proxies of the environment are for the world outside; a control plane is named by its own address.
        trust_env = not _is_loopback(self.url)
        self.http = httpx.Client(
            base_url=self.url, headers=_headers(key, project), timeout=timeout, trust_env=trust_env
        )

    def close(self) -> None:
        """Closes all connections."""
        self.http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        json: Any = None,
        headers: dict[str, str] | None = None,
        files: Callable[[], Any] | None = None,
        data: dict[str, str] | None = None,
    ) -> httpx.Response:
        """One call. Repeat-safe by the caller's word: every create carries an Idempotency-Key.

        `files` makes a fresh stream for each try. Raises Problem, Unreachable.
        """

        def once() -> httpx.Response:
            with self.reaching():
                response = self.http.request(
                    method,
                    path,
                    params=params,
                    json=json,
                    headers=headers,
                    files=files() if files else None,
                    data=data,
                )
            if response.is_error:
                raise Problem.of(response)
            return response

        return self.patiently(once)

    def patiently(self, call: Callable[[], Answer]) -> Answer:
        """`call`'s result, repeated with back-off while the server does not answer. Raises what the last try raised."""
        retrying = Retrying(
            retry=retry_if_exception(_passing),
            stop=stop_after_delay(self.patience),
            wait=wait_exponential_jitter(multiplier=0.2, max=2.0, jitter=0.2),
            reraise=True,
        )
        return retrying(call)

    def get(self, path: str, **params: Any) -> Any:
        """The JSON at `path`. Parameters that are None are left out. Raises Problem, Unreachable."""
        return self.call("GET", path, params=_given(params)).json()

    def pages(self, path: str, *, limit: int | None = None, page: int = 100, **params: Any) -> Iterator[dict[str, Any]]:
        """All entries of a list, page by page, `limit` at most. Raises Problem, Unreachable."""
        after: Any = params.pop("after", None)
        left = limit
        while left is None or left > 0:
            size = page if left is None else min(page, left)
            body = self.get(path, limit=size, after=after, **params)
            entries: list[dict[str, Any]] = body["data"]
            yield from entries
            after = body.get("next")
            if left is not None:
                left -= len(entries)
            if after is None or not entries:
                return

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Turns the network's exceptions into Unreachable."""
        try:
            yield
        except httpx.TransportError as error:
            raise Unreachable(self.url, str(error) or type(error).__name__) from error


def _headers(key: str | None, project: str | None) -> dict[str, str]:
    named = {"Authorization": f"Bearer {key}"} if key else {}
    return {**named, "Rlhf-Project": project} if project else named


def _given(params: Params) -> Params:
    return {k: v for k, v in params.items() if v is not None}


def _is_loopback(url: str) -> bool:
    return httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
