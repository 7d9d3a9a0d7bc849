"""Requests made from the OpenAPI description, with a viewer's and an editor's key: none breaks the server, is answered
otherwise than described, or sees anything of another project."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings

from api.domain.access import Role
from api.settings import load
from api.store import keys
from tests.api.conftest import REHEARSAL, TEXT, plane_on

schemathesis.checks.load_all_checks()
CHECKS = schemathesis.checks.CHECKS.get_by_names(
    ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
)
# What is in all names and words of the other project, and in nothing else.
CANARY = "zebrafinch"
# Requests for one operation before the next has its turn.
_IN_A_ROW = 6


@dataclass
class Doors:
    """A control plane with two projects.

    Attributes:
        theirs: ids and names of what the other project has, by the path parameter that takes them.
        ours: the same of the fuzzing keys' own.
    """

    url: str
    viewer: str
    editor: str
    theirs: dict[str, list[str]]
    ours: dict[str, list[str]]


async def _furnished(http: httpx.AsyncClient, word: str) -> dict[str, list[str]]:
    """Makes one of each thing, with `word` in whatever is said of it."""
    job = (await http.post("/v1/jobs", json={**REHEARSAL, "name": f"{word}-job"})).raise_for_status().json()["id"]
    steps = {"steps": {f"{word}-step": REHEARSAL}, "name": f"{word}-pipeline"}
    pipeline = (await http.post("/v1/pipelines", json=steps)).raise_for_status().json()["id"]
    upload = {"file": (f"{word}.jsonl", f'{TEXT}{{"text": "{word}"}}\n')}
    uploaded = await http.post("/v1/files", files=upload, data={"purpose": "fine-tune"})
    assert uploaded.is_success, uploaded.text
    file = uploaded.json()["id"]
    return {"job": [job], "pipeline": [pipeline], "file": [file], "model": [f"{word}-model"], "project": [word]}


async def _opened(folder: Path, url: str, ready: Callable[[Doors], None], stopped: threading.Event) -> None:
    given = load(data=folder, database_url=url, port=0, allowed_paths=[folder], auth="keys", hub_timeout=0.5)
    async with plane_on(given) as plane:
        root = keys.fresh()
        async with plane.control.database.transaction() as session:
            await keys.create(session, root, project="default", name="root", role=Role.ADMIN)
        plane.http.headers["Authorization"] = f"Bearer {root}"
        found: dict[str, dict[str, Any]] = {}
        for project in ("own", CANARY):
            (await plane.http.post("/v1/projects", json={"name": project})).raise_for_status()
            for role in ("viewer", "editor"):
                made = await plane.http.post("/v1/api-keys", json={"name": role, "role": role, "project": project})
                found.setdefault(project, {})[role] = made.raise_for_status().json()["key"]
            with_key = {"Authorization": f"Bearer {found[project]['editor']}"}
            async with httpx.AsyncClient(base_url=plane.http.base_url, headers=with_key, timeout=30) as http:
                found[project]["things"] = await _furnished(http, project)
        own, other = found["own"], found[CANARY]
        base = str(plane.http.base_url).rstrip("/")
        ready(Doors(base, own["viewer"], own["editor"], other["things"], own["things"]))
        await asyncio.to_thread(stopped.wait)


@pytest.fixture(scope="module")
def doors(postgres: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    opened, found, stopped = threading.Event(), [], threading.Event()

    def ready(doors: Doors) -> None:
        found.append(doors)
        opened.set()

    folder = tmp_path_factory.mktemp("doors")
    thread = threading.Thread(target=lambda: asyncio.run(_opened(folder, postgres(), ready, stopped)), daemon=True)
    thread.start()
    while not opened.wait(0.05):
        assert thread.is_alive()
    yield found[0]
    stopped.set()
    thread.join(30)


def _ask(operation: schemathesis.APIOperation, doors: Doors, key: str, round: int) -> int:
    """Asks for an operation some times, mostly for what is there. Gives how often."""
    numbers = itertools.count()

    @seed(round)
    @settings(
        max_examples=_IN_A_ROW,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def asks(case: schemathesis.Case) -> None:
        number = next(numbers)
        theirs = number % 3 == 0
        for name, ids in (doors.theirs if theirs else doors.ours).items():
            if number % 3 < 2 and name in (case.path_parameters or {}):
                case.path_parameters[name] = ids[0]
        headers = {"Authorization": f"Bearer {key}"} | ({} if number % 2 else {"Accept": "application/json"})
        answer = case.call_and_validate(headers=headers, timeout=30, checks=CHECKS)
        asked = f"{case.method} {answer.request.url}"
        body = case.body if isinstance(case.body, str | bytes | dict) else ""
        if CANARY not in asked and CANARY not in str(body):
            assert CANARY not in answer.text, asked
        if theirs and {*doors.theirs} & {*(case.path_parameters or {})}:
            assert answer.status_code >= 400, asked

    asks()
    return next(numbers)


def _for_as_long(doors: Doors, key: str, seconds: float) -> int:
    """Asks for all operations again and again. Gives how often."""
    operations = [
        found.ok() for found in schemathesis.openapi.from_url(f"{doors.url}/openapi.json").get_all_operations()
    ]
    begin, asked = time.monotonic(), 0
    for round in itertools.count():
        for operation in operations:
            if round and time.monotonic() - begin > seconds:
                return asked
            asked += _ask(operation, doors, key, round)
    raise AssertionError


@pytest.mark.parametrize("role", ["viewer", "editor"])
@pytest.mark.parametrize(
    "seconds",
    [pytest.param(30, id="short"), pytest.param(300, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(600)])],
)
def test_no_request_with_a_key_breaks_the_server_or_sees_another_project(
    doors: Doors, role: str, seconds: float
) -> None:
    asked = _for_as_long(doors, doors.viewer if role == "viewer" else doors.editor, seconds)
    print(f"{asked} requests as {role}")
