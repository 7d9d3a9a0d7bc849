"""A listener that speaks the worker's protocol as the control plane does, over real HTTP, and can be told to fail."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI, HTTPException, Request

from worker.contract.protocol import Answer, Checkpoint, Desired, Event, Finish, Metric, Report

# Each attempt's token begins with this.
TOKEN = "token-of-attempt-"


class Listener:
    """Accepts reports by their `seq`; `status` may choose another answer for each report, before it is taken."""

    def __init__(self, url_file: Path):
        self.url_file = url_file
        self.desired: Desired = "run"
        self.token = TOKEN
        self.status: Callable[[Report], int] = lambda report: 200
        self.seen: list[Report] = []
        """All reports that arrived, whatever was answered."""
        self.accepted: list[Report] = []
        self.finishes: list[Finish] = []
        self.seen_at: list[float] = []
        self._last_seq: dict[str, int] = {}
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listens on a free port, and writes the URL into the file."""
        listening = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(self._app(), log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), daemon=True)
        self._thread.start()
        self.url_file.write_text(f"http://127.0.0.1:{listening.getsockname()[1]}\n")

    def stop(self) -> None:
        """Stops listening: connections are refused from now on."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
        self._server = self._thread = None

    @property
    def metrics(self) -> list[Metric]:
        return [metric for report in self.accepted for metric in report.metrics]

    @property
    def events(self) -> list[Event]:
        return [event for report in self.accepted for event in report.events]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return [checkpoint for report in self.accepted for checkpoint in report.checkpoints]

    @property
    def losses(self) -> dict[int, float]:
        """The losses, by step."""
        return self.losses_since(0)

    def losses_since(self, first: int) -> dict[int, float]:
        """The losses of the reports from number `first` on, by step."""
        return {m.step: m.value for r in self.accepted[first:] for m in r.metrics if m.name == "train/loss"}

    @property
    def step(self) -> int:
        """The highest step that was reported."""
        return max((report.progress.step for report in self.accepted), default=0)

    def _app(self) -> FastAPI:
        app = FastAPI()

        def check_token(request: Request) -> str:
            token = request.headers.get("authorization", "")
            if not token.startswith(f"Bearer {self.token}"):
                raise HTTPException(401, "not the token of an attempt")
            return token

        @app.post("/worker/v1/report")
        async def report(body: Report, request: Request) -> Answer:
            attempt = check_token(request)
            self.seen.append(body)
            self.seen_at.append(time.monotonic())
            status = self.status(body)
            if status == HANG:
                await asyncio.sleep(3600)
            if status != 200:
                raise HTTPException(status, f"told to answer {status}")
            if body.seq > self._last_seq.get(attempt, 0):
                self._last_seq[attempt] = body.seq
                self.accepted.append(body)
            return Answer(desired=self.desired)

        @app.post("/worker/v1/finish")
        async def finish(body: Finish, request: Request) -> None:
            check_token(request)
            self.finishes.append(body)

        return app


HANG = -1
