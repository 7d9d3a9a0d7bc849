"""A real control plane on each database: sockets, both listeners, and no operator."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from api.control import ControlPlane
from api.serve import running
from api.settings import Settings, load
from api.store.database import utcnow
from api.store.tables import AttemptRow, JobRow

REHEARSAL: dict[str, Any] = {"stage": {"type": "rehearse", "steps": 3}}
TEXT = '{"text": "a row"}\n'
DIALOGUE = '{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}\n'


@dataclass
class Plane:
    """A control plane under test: what it holds, and a client of each of its listeners."""

    control: ControlPlane
    http: httpx.AsyncClient
    workers: httpx.AsyncClient

    async def submit(self, spec: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
        """A new job."""
        answer = await self.http.post("/v1/jobs", json=spec or REHEARSAL, headers=headers)
        assert answer.status_code == 201, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def get(self, job: str) -> dict[str, Any]:
        """A job as it is shown."""
        answer = await self.http.get(f"/v1/jobs/{job}")
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def set(self, job: str, **columns: Any) -> None:
        """What the operator would write of a job."""
        async with self.control.database.transaction() as session:
            await session.execute(update(JobRow).where(JobRow.id == job).values(**columns))

    async def set_attempt(self, job: str, number: int, **columns: Any) -> None:
        """What the operator would write of an attempt."""
        where = (AttemptRow.job_id == job, AttemptRow.number == number)
        async with self.control.database.transaction() as session:
            await session.execute(update(AttemptRow).where(*where).values(**columns))

    async def start(self, job: str, number: int = 1) -> "Worker":
        """The operator starts an attempt; here is its worker."""
        async with self.control.database.transaction() as session:
            session.add(
                AttemptRow(
                    job_id=job,
                    number=number,
                    object_name=f"{job}-a{number}",
                    created_at=utcnow(),
                    uid=None,
                    accepted_at=None,
                    ended_at=None,
                    began_with_step=None,
                    stopping_since=None,
                    stop_reason=None,
                    termination=None,
                    exit_code=None,
                    reason=None,
                    fault=None,
                    reported_at=None,
                    progressed_at=None,
                    resumed_from=None,
                    progress=None,
                )
            )
            await session.execute(update(JobRow).where(JobRow.id == job).values(phase="starting", attempt=number))
        return Worker(self, job, number, await self.control.tokens.issue(job, number))


@dataclass
class Worker:
    """An attempt's launcher, as far as the control plane sees it."""

    plane: Plane
    job: str
    number: int
    token: str
    seq: int = 0

    async def report(self, seq: int | None = None, **fields: Any) -> httpx.Response:
        """One report; `seq` counts by itself."""
        self.seq = seq if seq is not None else self.seq + 1
        return await self.post("report", {"seq": self.seq, "activity": "training", **fields})

    async def finish(self, outcome: str = "succeeded", reason: str = "Finished", **fields: Any) -> httpx.Response:
        """Its last word."""
        return await self.post("finish", {"outcome": outcome, "reason": reason, **fields})

    async def post(self, call: str, body: Any) -> httpx.Response:
        """Any call with the attempt's token."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return await self.plane.workers.post(f"/worker/v1/{call}", json=body, headers=headers)


def points(*steps: int, name: str = "train/loss") -> list[dict[str, Any]]:
    """A curve: at each step the step's own number as its value."""
    return [{"name": name, "step": step, "value": float(step), "at": "2026-01-01T00:00:00Z"} for step in steps]


def happenings(*types: str) -> list[dict[str, Any]]:
    """A worker's events."""
    return [{"type": type, "message": type.lower(), "at": "2026-01-01T00:00:00Z"} for type in types]


def rows(count: int, row: str = TEXT) -> bytes:
    """A data file."""
    return (row * count).encode()


def paths(answer: httpx.Response) -> list[str]:
    """Where a problem says that something is wrong."""
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == answer.status_code
    assert body["detail"]
    return [error["path"] for error in body["errors"]]


def write_model(folder: Path, positions: int = 64) -> Path:
    """A folder that looks like a model's, as far as anyone without torch can see."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": positions}))
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return folder


def write_adapter(folder: Path, base: str | None = None, **fields: object) -> Path:
    """A folder that looks like a reward model's adapter, trained on the model of the hash `base`."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config | fields))
    (folder / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    if base is not None:
        (folder / "lineage.json").write_text(json.dumps({"inputs": {"stage.model": {"sha256": base}}}))
    return folder


@asynccontextmanager
async def plane_on(settings: Settings) -> AsyncIterator[Plane]:
    """A running control plane."""
    async with running(settings, "api") as this:
        assert this.url and this.worker_url
        async with (
            httpx.AsyncClient(base_url=this.url, timeout=30) as http,
            httpx.AsyncClient(base_url=this.worker_url, timeout=30) as workers,
        ):
            yield Plane(this.control, http, workers)


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """Everything in the test's own folder; `allowed` in it may be named by path; small limits."""
    (tmp_path / "allowed").mkdir()
    return load(
        data=tmp_path / "data",
        database_url=database_url,
        port=0,
        allowed_paths=[tmp_path / "allowed"],
        max_file=64 * 1024,
        hub_timeout=1.0,
        shutdown_grace=2.0,
    )


@pytest.fixture
async def plane(settings: Settings) -> AsyncIterator[Plane]:
    """A running control plane on each database."""
    async with plane_on(settings) as plane:
        yield plane
