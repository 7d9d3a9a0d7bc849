"""A real S3 server of the tests' own, and what stands between it and its callers to fail as servers and lines do."""

import contextlib
import http.client
import os
import re
import secrets
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from tests.process.attempts import until

_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass(frozen=True)
class S3:
    """Where an S3 server listens, and the credentials for it."""

    endpoint: str
    key: str = field(default_factory=lambda: f"AKIA{secrets.token_hex(8).upper()}")
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(30))

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead to it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def bucket(self) -> str:
        """Makes an empty bucket, and gives its name."""
        name = f"store-{secrets.token_hex(6)}"
        place = urlsplit(self.endpoint)
        if place.scheme == "http":
            connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
        else:
            unverified = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection(place.hostname or "", place.port, timeout=60, context=unverified)
        connection.request("PUT", f"/{name}")
        assert connection.getresponse().status == 200
        connection.close()
        return name


@contextlib.contextmanager
def serving(log: Path, host: str = "127.0.0.1", tls: Path | None = None) -> Iterator[S3]:
    """Runs a server at an address of this machine until the block ends. `tls`: where `tls.crt` and `tls.key` lie."""
    by = [] if tls is None else ["--ssl", "--ssl-cert", str(tls / "tls.crt"), "--ssl-key", str(tls / "tls.key")]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", host, "-p", "0", *by],
            stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"MOTO_IAM_LOAD_MANAGED_POLICIES": "false"},
        )  # fmt: skip
    try:
        found = until(lambda: re.search(rf"Running on (https?://{re.escape(host)}:\d+)", log.read_text()), 90)
        yield S3(found[1])
    finally:
        process.kill()
        process.wait(30)


@dataclass(frozen=True)
class Request:
    """One request, numbered from 1 among those that write."""

    number: int
    method: str
    path: str
    query: str

    @property
    def writes(self) -> bool:
        return self.method != "GET" and self.method != "HEAD"


@dataclass(frozen=True)
class Answer:
    """An answer in the server's place: an error by S3's code."""

    status: int
    code: str


Before = Callable[[Request], Answer | None]


class Line:
    """A line to an S3 server. Whatever is done to it, the server itself never fails."""

    def __init__(self, server: S3):
        self.requests: list[Request] = []
        self.before: Before = lambda _: None
        """Called with each request before the server hears of it; it may wait, and answer in its place."""
        self.after: Callable[[Request], None] = lambda _: None
        """Called once the server has done what was asked, before the caller hears of it."""
        self.direct = server
        """The server, past this line."""
        self._lock, self._writes = threading.Lock(), 0
        line, place = self, urlsplit(server.endpoint)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with contextlib.suppress(OSError):
                    super().handle_one_request()
                    return
                self.close_connection = True

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = line._numbered(self.command, self.path)
                answer = line.before(request)
                if answer is not None:
                    content = f"<Error><Code>{answer.code}</Code><Message>no</Message></Error>".encode()
                    self.send_response(answer.status)
                    self.send_header("Content-Type", "application/xml")
                    self._say(content)
                    return
                connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
                connection.request(self.command, self.path, body, dict(self.headers.items()))
                said = connection.getresponse()
                content = said.read()
                line.after(request)
                self.send_response(said.status)
                for name, value in said.getheaders():
                    if name.lower() not in _HOP:
                        self.send_header(name, value)
                length = said.getheader("Content-Length") if self.command == "HEAD" else None
                self._say(content, length)
                connection.close()

            def _say(self, content: bytes, length: str | None = None) -> None:
                self.send_header("Content-Length", length or str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.s3 = S3(f"http://127.0.0.1:{self._server.server_address[1]}", server.key, server.secret)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def writes(self) -> list[Request]:
        """The requests so far that write."""
        return [request for request in self.requests if request.writes]

    def forget(self) -> None:
        """Counts from anew."""
        with self._lock:
            self.requests, self._writes = [], 0

    def close(self) -> None:
        """Nobody answers any more."""
        self._server.shutdown()
        self._server.server_close()

    def _numbered(self, method: str, path: str) -> Request:
        parts = urlsplit(path)
        with self._lock:
            self._writes += method not in ("GET", "HEAD")
            request = Request(self._writes, method, parts.path, parts.query)
            self.requests.append(request)
        return request
