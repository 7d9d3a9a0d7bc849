"""An API server that fails as told: a proxy before the real one, which records, and breaks what a test names."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from aiohttp import web
from yarl import URL

from tests.cluster.credentials import Credentials
from tests.cluster.pki import kubeconfig
from tests.kubernetes.api_request import ApiRequest, Predicate, anything, parse
from tests.kubernetes.faults import EXPIRED, Hook, Rule, Watch, copy_lines, cut, end_to_end

_REASONS = {403: "Forbidden", 404: "NotFound", 409: "Conflict", 429: "TooManyRequests", 500: "InternalError"}
_T = TypeVar("_T")


class FaultyApiServer:
    """Forwards to an API server with given credentials, over plain HTTP on 127.0.0.1, from a thread of its own.

    Use it as a context manager. Every method may be called from any thread, and has taken effect when it returns.

    Attributes:
        url: where it listens, the same for its whole life.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-api-server", daemon=True)
        self._changed = threading.Condition()
        self._requests: list[ApiRequest] = []
        self._rules: list[Rule] = []
        self._watches: set[Watch] = set()
        self._work: set[asyncio.Task[web.StreamResponse]] = set()
        self._silent = False
        self.url = ""

    def __enter__(self) -> "FaultyApiServer":
        self._thread.start()
        self._in_loop(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._in_loop(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def write_kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig for it, and give the path. Whoever comes is the user of the proxy's credentials."""
        path.write_text(kubeconfig({"server": self.url}, {}))
        return path

    # What was asked.

    def requests(self, matching: Predicate = anything) -> list[ApiRequest]:
        """What came so far, in order, failed or not."""
        with self._changed:
            return [request for request in self._requests if matching(request)]

    def count(self, matching: Predicate = anything) -> int:
        """How many came so far."""
        return len(self.requests(matching))

    def wait_for(self, matching: Predicate, count: int = 1, seconds: float = 30) -> None:
        """Return when so many have come.

        Raises:
            TimeoutError: they did not.
        """
        self._wait(lambda: self.count(matching) >= count, f"{count} such requests", seconds)

    def wait_for_watches(self, count: int, matching: Predicate = anything, seconds: float = 30) -> None:
        """Return when so many watches are open, answered by the API server.

        Raises:
            TimeoutError: they are not.
        """

        def open_now() -> bool:
            return sum(matching(watch.request) and not watch.ended.is_set() for watch in list(self._watches)) == count

        self._wait(open_now, f"{count} open watches", seconds)

    # What goes wrong.

    def answer(
        self,
        status: int,
        matching: Predicate = anything,
        *,
        times: int = 1,
        retry_after: int | None = None,
        reason: str = "",
    ) -> None:
        """Answer the next requests with an error, and forward none of them."""

        async def fault(_: web.Request, request: ApiRequest) -> web.StreamResponse:
            body = {
                "kind": "Status",
                "apiVersion": "v1",
                "metadata": {},
                "status": "Failure",
                "message": f"told to fail: {request.verb} {request.resource} {request.name}".strip(),
                "reason": reason or _REASONS.get(status, ""),
                "code": status,
            }
            headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
            return web.json_response(body, status=status, headers=headers)

        self._add(Rule(matching, times, fault=fault))

    def answer_with_a_page(self, status: int, matching: Predicate = anything, *, times: int = 1) -> None:
        """Answer the next requests with HTML, as somebody in between would; none is forwarded."""

        async def fault(_: web.Request, __: ApiRequest) -> web.StreamResponse:
            return web.Response(status=status, text="<html><h1>Not here</h1></html>", content_type="text/html")

        self._add(Rule(matching, times, fault=fault))

    def hang(self, matching: Predicate = anything, *, times: int = 1) -> None:
        """Take the next requests, and never answer; none is forwarded."""

        async def fault(_: web.Request, __: ApiRequest) -> web.StreamResponse:
            await asyncio.Event().wait()
            raise AssertionError

        self._add(Rule(matching, times, fault=fault))

    def drop(self, matching: Predicate = anything, *, times: int = 1) -> None:
        """Cut the connections of the next requests, and forward none of them."""

        async def fault(incoming: web.Request, _: ApiRequest) -> web.StreamResponse:
            return cut(incoming)

        self._add(Rule(matching, times, fault=fault))

    def lose_reply(self, matching: Predicate = anything, *, times: int = 1) -> None:
        """Let the next requests be done, and cut their connections in the place of a reply."""

        async def fault(incoming: web.Request, request: ApiRequest) -> web.StreamResponse:
            await self._exchange(incoming, request)
            return cut(incoming)

        self._add(Rule(matching, times, fault=fault))

    def call_before(self, hook: Hook, matching: Predicate = anything, *, nth: int = 1) -> None:
        """Call a function when the nth request from now on has come, before it is forwarded.

        It is forwarded then, even if its client is gone; `drop` the same one where it must not be.
        """
        self._add(Rule(matching, 1, nth - 1, before=hook))

    def call_after(self, hook: Hook, matching: Predicate = anything, *, nth: int = 1) -> None:
        """Call a function when the nth request from now on is done, before its reply is handed on."""
        self._add(Rule(matching, 1, nth - 1, after=hook))

    def forget(self) -> None:
        """Forward everything again; what hangs already hangs on."""
        with self._changed:
            self._rules.clear()
        self._silent = False

    def cut_watches(self, matching: Predicate = anything) -> int:
        """Cut the connections of all open watches, and say how many there were."""
        return self._in_loop(self._end_watches(matching, b""))

    def expire_watches(self, matching: Predicate = anything) -> int:
        """End all open watches with an ERROR event of status 410, and say how many there were."""
        return self._in_loop(self._end_watches(matching, json.dumps(EXPIRED).encode() + b"\n"))

    @contextmanager
    def silence(self) -> Iterator[None]:
        """In this block, open watches and new ones stay connected and say nothing. Those never speak again."""
        self._in_loop(self._silence())
        try:
            yield
        finally:
            self._silent = False

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """In this block nothing listens, and all connections are cut."""
        self._in_loop(self._refuse())
        try:
            yield
        finally:
            self._in_loop(self._listen())

    # In the loop's thread.

    async def _open(self) -> None:
        self._upstream = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._credentials.tls, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            headers=self._credentials.headers,
        )
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        self._port = 0
        await self._listen()

    async def _listen(self) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await self._site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def _close(self) -> None:
        for work in self._work:
            work.cancel()
        await self._runner.cleanup()
        await self._upstream.close()

    async def _refuse(self) -> None:
        await self._site.stop()
        assert self._runner.server is not None
        for connection in list(self._runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()

    async def _silence(self) -> None:
        self._silent = True
        for watch in self._watches:
            watch.silent = True

    async def _end_watches(self, matching: Predicate, last_line: bytes) -> int:
        chosen = [watch for watch in self._watches if matching(watch.request) and not watch.ended.is_set()]
        for watch in chosen:
            watch.last_line = last_line
            watch.ended.set()
        return len(chosen)

    async def _handle(self, incoming: web.Request) -> web.StreamResponse:
        request = parse(incoming.method, incoming.path, dict(incoming.query), await incoming.read())
        with self._changed:
            self._requests.append(request)
            rules = [rule for rule in self._rules if rule.takes(request)]
            self._changed.notify_all()
        if request.verb == "watch" or request.resource == "pods/log":
            return await self._stream(incoming, request, rules)
        # A request that has come is done, as by a real server, also when its client is killed by a hook of ours.
        work = asyncio.create_task(self._whole(incoming, request, rules))
        self._work.add(work)
        work.add_done_callback(self._work.discard)
        return await asyncio.shield(work)

    async def _whole(self, incoming: web.Request, request: ApiRequest, rules: list[Rule]) -> web.StreamResponse:
        if (failed := await self._before(incoming, request, rules)) is not None:
            return failed
        answer = await self._exchange(incoming, request)
        for rule in rules:
            if rule.after is not None:
                await asyncio.to_thread(rule.after, request)
        return answer

    async def _stream(self, incoming: web.Request, request: ApiRequest, rules: list[Rule]) -> web.StreamResponse:
        if (failed := await self._before(incoming, request, rules)) is not None:
            return failed
        async with self._forwarded(incoming, request) as reply:
            if request.verb == "watch" and reply.status == 200:
                return await self._pass_on_watch(incoming, request, reply)
            answered = web.StreamResponse(status=reply.status, headers=end_to_end(reply.headers))
            await answered.prepare(incoming)
            async for chunk in reply.content.iter_any():
                await answered.write(chunk)
            await answered.write_eof()
            return answered

    async def _before(self, incoming: web.Request, request: ApiRequest, rules: list[Rule]) -> web.StreamResponse | None:
        for rule in rules:
            if rule.before is not None:
                await asyncio.to_thread(rule.before, request)
        for rule in rules:
            if rule.fault is not None:
                return await rule.fault(incoming, request)
        return None

    async def _exchange(self, incoming: web.Request, request: ApiRequest) -> web.Response:
        async with self._forwarded(incoming, request) as reply:
            body = await reply.read()
            return web.Response(status=reply.status, headers=end_to_end(reply.headers), body=body)

    def _forwarded(self, incoming: web.Request, request: ApiRequest) -> Any:
        return self._upstream.request(
            request.method,
            URL(f"{self._credentials.url.rstrip('/')}{incoming.raw_path}", encoded=True),
            data=request.body or None,
            # What is read line by line must not come compressed.
            headers={**end_to_end(incoming.headers), "Accept-Encoding": "identity"},
        )

    async def _pass_on_watch(
        self, incoming: web.Request, request: ApiRequest, reply: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        answered = web.StreamResponse(status=reply.status, headers=end_to_end(reply.headers))
        await answered.prepare(incoming)
        watch = Watch(request, self._silent)
        with self._changed:
            self._watches.add(watch)
            self._changed.notify_all()
        copying = asyncio.ensure_future(copy_lines(reply, answered, watch))
        ending = asyncio.ensure_future(watch.ended.wait())
        try:
            await asyncio.wait({copying, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not watch.ended.is_set():
                await copying  # an error of it is ours
        finally:
            for task in (copying, ending):
                task.cancel()
            with self._changed:
                self._watches.discard(watch)
                self._changed.notify_all()
        if watch.ended.is_set() and not watch.last_line:
            return cut(incoming)
        if watch.last_line:
            await answered.write(watch.last_line)
        await answered.write_eof()
        return answered

    def _add(self, rule: Rule) -> None:
        with self._changed:
            self._rules.append(rule)

    def _wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with self._changed:
            if not self._changed.wait_for(condition, deadline - time.monotonic()):
                raise TimeoutError(f"not within {seconds} s: {what}")

    def _in_loop(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)
