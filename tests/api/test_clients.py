"""Clients that are slow, send too much or are too many: bounded memory, and the others are answered.

On a real process and raw sockets, as no client library would behave so.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from sqlalchemy import insert, update

from api.patience import protocol
from api.settings import load
from api.store.database import Database, utcnow
from api.store.tables import EventRow, JobRow
from tests.api.conftest import REHEARSAL
from tests.e2e.plane import free_port

PATIENCE = 1.0
MOST = 60
MIB = 2**20


class Served:
    """A control plane in a process of its own."""

    def __init__(self, data: Path, **settings: str) -> None:
        self.port, self.data = free_port(), data
        command = [sys.executable, "-m", "api", "--role", "api", "--port", str(self.port), "--data", str(data)]
        environment = {**os.environ, "DATABASE_URL": "", "CLIENT_TIMEOUT": str(PATIENCE), **settings}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert " listens on " in line
        self.worker_port = int((data / "worker-url").read_text().rpartition(":")[2])
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def rss(self) -> float:
        """Resident memory in MiB."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / MIB

    def stop(self) -> float:
        """Asks it to end; gives the seconds that took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0
        return time.monotonic() - began


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("data"), MAX_CONNECTIONS=str(MOST))
    yield made
    if made.process.poll() is None:
        made.stop()


class Raw:
    """A connection that does what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *lines: str, body: bytes = b"") -> None:
        """A head, or a part of one."""
        self.writer.write("\r\n".join(lines).encode() + body)

    async def end(self) -> bytes:
        """All that comes until the other side closes."""
        found = b""
        async with asyncio.timeout(20):
            try:
                while part := await self.reader.read(65536):
                    found += part
            except ConnectionError:
                pass
        return found


@asynccontextmanager
async def connected(served: Served, port: int | None = None, buffer: int = 0) -> AsyncIterator[Raw]:
    made = socket.socket()
    if buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    made.connect(("127.0.0.1", port or served.port))
    reader, writer = await asyncio.open_connection(sock=made, limit=buffer or 65536)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()


async def answers(served: Served, within: float = 3.0) -> None:
    """Others are answered meanwhile."""
    async with httpx.AsyncClient(base_url=served.url, timeout=within) as http:
        assert (await http.get("/readyz")).status_code == 200
        assert (await http.get("/v1/jobs")).status_code == 200


async def submitted(served: Served) -> str:
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as http:
        return str((await http.post("/v1/jobs", json=REHEARSAL)).json()["id"])


def head(method: str, path: str, *headers: str) -> tuple[str, ...]:
    return (f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", "")


POST = ("Content-Type: application/json",)


async def test_a_body_that_says_it_is_too_large_is_refused_without_being_read(served: Served) -> None:
    before = served.rss
    async with connected(served) as raw:
        raw.send(*head("POST", "/v1/jobs", *POST, f"Content-Length: {2**40}"))
        answer = await raw.end()
    assert answer.startswith(b"HTTP/1.1 413")
    assert served.rss < before + 32


async def test_a_body_without_an_end_is_refused_and_never_held(served: Served) -> None:
    before = served.rss
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    async with connected(served) as raw:
        raw.send(*head("POST", "/v1/jobs", *POST, "Transfer-Encoding: chunked"))
        ended, sent, most = asyncio.create_task(raw.end()), 0, before
        while not ended.done():
            try:
                raw.writer.write(chunk)
                await asyncio.wait_for(raw.writer.drain(), 5)
            except (ConnectionError, TimeoutError):
                break
            sent += len(chunk)
            most = max(most, served.rss)
            await asyncio.sleep(0)
        answer = await ended
    # It goes on sending until it is cut off; what it was told may be lost then, as with any server.
    assert not answer or answer.startswith(b"HTTP/1.1 413")
    assert sent > 4 * MIB
    assert most < before + 48
    await answers(served)


async def test_a_head_that_comes_byte_by_byte_is_not_waited_for(served: Served) -> None:
    async with connected(served) as raw, connected(served) as silent, connected(served, served.worker_port) as worker:
        began = time.monotonic()
        ended = [asyncio.create_task(one.end()) for one in (raw, silent, worker)]
        for byte in "GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 1000:
            if all(task.done() for task in ended):
                break
            raw.send(byte)
            worker.send(byte)
            await asyncio.sleep(0.05)
        told, nothing, too = await asyncio.gather(*ended)
        assert time.monotonic() - began < 10 * PATIENCE
    assert told.startswith(b"HTTP/1.1 408") and too.startswith(b"HTTP/1.1 408")
    assert nothing == b""
    assert json.loads(told.partition(b"\r\n\r\n")[2])["detail"] == "the request's head took more than 1 s"
    await answers(served)


async def test_a_line_now_and_then_keeps_no_connection(served: Served) -> None:
    async with connected(served) as raw:
        raw.send(*head("GET", "/livez"))
        async with asyncio.timeout(10):
            assert b'"ok"' in await raw.reader.readuntil(b"}")
        ended = asyncio.create_task(raw.end())
        while not ended.done():
            raw.send("\r\n")
            await asyncio.sleep(0.1)
        await ended


async def test_a_head_without_an_end_is_refused(served: Served) -> None:
    before = served.rss
    async with connected(served) as raw:
        raw.send("GET /v1/jobs HTTP/1.1", "Host: localhost", "")
        ended = asyncio.create_task(raw.end())
        for _ in range(10_000):
            if ended.done():
                break
            raw.send(f"X: {'x' * 4000}", "")
            await asyncio.sleep(0)
        answer = await ended
    assert not answer or answer.startswith(b"HTTP/1.1 431")
    assert served.rss < before + 16


@pytest.mark.parametrize("length", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
async def test_a_body_that_stalls_is_not_waited_for(served: Served, length: str) -> None:
    async with connected(served) as raw:
        raw.send(*head("POST", "/v1/jobs", *POST, length), body=b"1\r\n{\r\n" if "chunked" in length else b"{")
        answer = await raw.end()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"by less than 1024 bytes a second" in answer
    await answers(served)


async def test_a_body_that_comes_steadily_has_its_time(served: Served) -> None:
    body = json.dumps(REHEARSAL).encode() + b" " * 8000
    async with connected(served) as raw:
        raw.send(*head("POST", "/v1/jobs", *POST, f"Content-Length: {len(body)}", "Connection: close"))
        for start in range(0, len(body), 1000):
            raw.send(body=body[start : start + 1000])
            await asyncio.sleep(0.3)
        assert (await raw.end()).startswith(b"HTTP/1.1 201")


async def test_who_asks_first_whether_to_send_has_time_from_the_answer_on(served: Served) -> None:
    body = json.dumps(REHEARSAL).encode()
    async with connected(served) as raw:
        length = f"Content-Length: {len(body)}"
        raw.send(*head("POST", "/v1/jobs", *POST, length, "Expect: 100-continue", "Connection: close"))
        async with asyncio.timeout(10):
            assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        raw.send(body=body)
        assert b"HTTP/1.1 201" in await raw.end()


async def test_an_answer_that_nobody_reads_is_given_up(served: Served) -> None:
    """Requests one after the other, on a connection whose other end reads nothing: megabytes of OpenAPI documents."""
    before = served.rss
    async with connected(served) as raw:
        # The buffer of this side is filled by what comes; nobody takes it out.
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        raw.send(*head("GET", "/openapi.json") * 1, body="\r\n".join(head("GET", "/openapi.json")).encode() * 50)
        await gone(served, raw)
        assert served.rss < before + 32
    await answers(served)


async def test_an_answer_that_is_read_slowly_is_waited_for(served: Served) -> None:
    """By more than what is asked of a client, and by less than what the system takes from a process at a time."""
    job = await submitted(served)
    await much_happens(served, job)
    for kept in ("keep-alive", "close"):
        async with connected(served, buffer=4096) as raw:
            raw.send(*head("GET", f"/v1/jobs/{job}/events?limit=200", f"Connection: {kept}"))
            ends = time.monotonic() + 6 * PATIENCE
            while time.monotonic() < ends:
                assert await asyncio.wait_for(raw.reader.read(4096), 10), "it was cut off"
                await asyncio.sleep(0.1)


async def test_who_reads_steadily_is_not_idle(served: Served) -> None:
    """The whole answer is written at once; reading it takes longer than a connection may be idle."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", str(MIB).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * MIB})

    kind = protocol(PATIENCE, 10)
    server = uvicorn.Server(uvicorn.Config(app, http=kind, lifespan="off", log_config=None, timeout_keep_alive=1))
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 65536)
    serving = asyncio.create_task(server.serve([listener]))
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    async with connected(served, listener.getsockname()[1], buffer=65536) as raw:
        raw.send(*head("GET", "/"))
        await raw.reader.readuntil(b"\r\n\r\n")
        got = 0
        while part := await raw.reader.read(32768):
            got += len(part)
            await asyncio.sleep(len(part) / MIB * 2 * PATIENCE)
        assert got == MIB
    server.should_exit = True
    await serving


async def test_who_sends_ever_more_requests_and_waits_for_none_is_cut_off(served: Served) -> None:
    async with connected(served) as raw:
        raw.send(body="\r\n".join(head("GET", "/livez")).encode() * 300)
        assert (await raw.end()).count(b"200 OK") < 300
    async with connected(served) as raw:
        raw.send(body="\r\n".join(head("GET", "/livez")).encode() * 50)
        async with asyncio.timeout(10):
            for _ in range(50):
                await raw.reader.readuntil(b'"ok"}')


async def test_what_is_wrong_with_a_second_request_is_not_said_within_the_answer_to_the_first(served: Served) -> None:
    job = await submitted(served)
    async with connected(served) as raw:
        raw.send(*head("GET", f"/v1/jobs/{job}/events/stream"))
        async with asyncio.timeout(10):
            await raw.reader.readuntil(b'"Created"')
        raw.send("GET / HTTP/1.1", "")
        # No more than is too much: what it does not read any more would take its words back.
        for _ in range(9):
            await asyncio.sleep(0.05)
            raw.send(f"X: {'x' * 8000}", "")
        assert b"HTTP/1.1" not in await raw.end()


async def gone(served: Served, raw: Raw) -> None:
    """Returns once the process has no such connection any more."""
    port = raw.writer.get_extra_info("sockname")[1]
    process = psutil.Process(served.process.pid)
    async with asyncio.timeout(20):
        while any(c.raddr and c.raddr.port == port for c in process.net_connections("tcp")):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_a_stream_that_nobody_reads_is_cut_off(served: Served) -> None:
    job = await submitted(served)
    before = served.rss
    async with connected(served, buffer=4096) as raw:
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        raw.send(*head("GET", f"/v1/jobs/{job}/events/stream"))
        await much_happens(served, job)
        await gone(served, raw)
    assert served.rss < before + 48
    await answers(served)


async def much_happens(served: Served, job: str) -> None:
    """Events of 16 MiB in all."""
    database = Database(load(data=served.data, database_url="").database)
    async with database.transaction() as session:
        row = {"job_id": job, "at": utcnow(), "type": "Much", "source": "worker", "message": "x" * 8192}
        await session.execute(insert(EventRow), [{**row, "number": number} for number in range(2, 2050)])
        await session.execute(update(JobRow).where(JobRow.id == job).values(event_count=2049))
    await database.dispose()


async def test_a_thousand_idle_streams_cost_little_and_end_at_once(tmp_path: Path) -> None:
    served = Served(tmp_path / "data", CLIENT_TIMEOUT="20", MAX_CONNECTIONS="1200")
    try:
        job = await submitted(served)
        before = served.rss
        opened = []
        for _ in range(1000):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            Raw(reader, writer).send(*head("GET", f"/v1/jobs/{job}/events/stream"))
            opened.append((reader, writer))
        async with asyncio.timeout(60):
            for reader, _ in opened:
                await reader.readuntil(b'"Created"')
        grown = served.rss - before
        print(f"1,000 idle streams: {grown:.0f} MiB")
        assert grown < 100
        await answers(served)
        assert served.stop() < 5
        for reader, writer in opened:
            async with asyncio.timeout(5):
                await reader.read()
            writer.close()
    finally:
        served.process.kill()


async def test_more_connections_than_there_may_be_are_told_so_and_the_process_lives_on(served: Served) -> None:
    held = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(MOST)]
    for reader, writer in held:
        # Idle after that, as browsers and clients of ours keep them.
        writer.write("\r\n".join(head("GET", "/livez")).encode())
        async with asyncio.timeout(10):
            await reader.readuntil(b'"ok"}')
    try:
        async with connected(served) as raw, connected(served) as probe:
            raw.send(*head("GET", "/v1/jobs"))
            answer = await raw.end()
            probe.send(*head("GET", "/livez", "Connection: close"))
            assert (await probe.end()).startswith(b"HTTP/1.1 200")
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 1" in answer
        # Workers have a listener of their own.
        async with connected(served, served.worker_port) as worker:
            worker.send(*head("POST", "/worker/v1/report", "Content-Length: 0", "Connection: close"))
            assert (await worker.end()).startswith(b"HTTP/1.1 401")
    finally:
        for _, writer in held:
            writer.close()
    async with asyncio.timeout(20):
        while psutil.Process(served.process.pid).num_fds() > MOST:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await answers(served)
