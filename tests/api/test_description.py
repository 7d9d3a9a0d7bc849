"""The OpenAPI description: requests made from it never break the server, and answers are as it says."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from api.main import create_worker_app
from api.settings import load
from tests.api.conftest import Plane, happenings, plane_on, points

AT = "2026-01-01T00:00:00Z"
FOLLOWED = ("events", "metrics", "logs", "samples")


async def test_every_route_says_how_it_refuses(plane: Plane) -> None:
    description = (await plane.http.get("/openapi.json")).json()
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert list(answer["content"]) == ["application/problem+json"], (path, method, status)
            assert "403" in operation["responses"]
            assert ("507" in operation["responses"]) == (method != "get" and path != "/v1/estimate")
    create = description["paths"]["/v1/jobs"]["post"]
    assert create["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/JobSpec")
    of_a_page = (await plane.http.get("/livez", headers={"Origin": "https://elsewhere.example"})).status_code
    assert of_a_page == 403


async def test_what_can_be_followed_says_so_where_it_is_listed_and_where_it_is_streamed(plane: Plane) -> None:
    paths = (await plane.http.get("/openapi.json")).json()["paths"]
    job = (await plane.submit())["id"]
    await plane.set(job, phase="cancelled")
    for kind in FOLLOWED:
        listed, streamed = (paths[f"/v1/jobs/{{job}}/{kind}{end}"]["get"]["responses"] for end in ("", "/stream"))
        assert list(listed["200"]["content"]) == ["application/json", "text/event-stream"]
        assert list(streamed["200"]["content"]) == ["text/event-stream"]
        assert {"200", "204"} <= set(listed) & set(streamed)
        for how in ({"params": {"follow": True}}, {"headers": {"Accept": "text/event-stream"}}):
            answer = await plane.http.get(f"/v1/jobs/{job}/{kind}", **how)
            assert answer.headers["content-type"].startswith("text/event-stream")


async def test_the_filter_by_metadata_is_a_parameter_that_is_told(plane: Plane) -> None:
    operation = (await plane.http.get("/openapi.json")).json()["paths"]["/v1/jobs"]["get"]
    [told] = [parameter for parameter in operation["parameters"] if parameter["name"] == "metadata"]
    assert (told["in"], told["style"], told["explode"]) == ("query", "deepObject", True)
    spec = {"stage": {"type": "rehearse"}, "metadata": {"team": "a"}}
    job = await plane.submit(spec)
    for name in ("metadata[team]", "metadata.team"):
        for value, found in (("a", [job["id"]]), ("b", [])):
            page = (await plane.http.get("/v1/jobs", params={name: value})).json()
            assert [one["id"] for one in page["data"]] == found


async def test_every_reference_in_the_description_leads_somewhere(plane: Plane) -> None:
    def references(value: object) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(ref := value.get("$ref"), str):
                yield ref
            for entry in value.values():
                yield from references(entry)
        elif isinstance(value, list):
            for entry in value:
                yield from references(entry)

    for description in (
        (await plane.http.get("/openapi.json")).json(),
        create_worker_app(plane.control).openapi(),
    ):
        names = set(description["components"]["schemas"])
        assert {ref.removeprefix("#/components/schemas/") for ref in references(description)} <= names


@dataclass
class Fuzzed:
    """A control plane in a thread, since the requests come from a synchronous client, and what is in it."""

    url: str = ""
    workers: str = ""
    for_workers: dict[str, Any] = field(default_factory=dict)
    over: str = ""
    """A job that is over: its streams end by themselves."""
    live: str = ""
    """One that may be changed."""
    running: str = ""
    token: str = ""
    """Its attempt's."""


async def filled(plane: Plane) -> Fuzzed:
    over = (await plane.submit())["id"]
    worker = await plane.start(over)
    sample = {"prompt": "2+2?", "answer": "4", "tokens": ["4"], "kl": [0.1], "reward": 1.0, "ended": True, "at": AT}
    checkpoint = {"step": 1, "path": f"jobs/{over}/a1/checkpoints/step-1", "bytes": 1, "sha256": "a" * 64, "at": AT}
    told = await worker.report(
        metrics=points(1, 2),
        events=happenings("Odd"),
        samples=[{"step": 1, "index": 0, **sample}],
        checkpoints=[checkpoint],
    )
    assert told.is_success, told.text
    log = plane.control.settings.data / "attempts" / f"{over}-a1" / "log" / "rank-0.log"
    log.parent.mkdir(parents=True)
    log.write_text("a line\n" * 10)
    await plane.set(over, phase="cancelled")
    live = (await plane.submit())["id"]
    running = (await plane.submit())["id"]
    token = (await plane.start(running)).token
    description = create_worker_app(plane.control).openapi()
    urls = str(plane.http.base_url).rstrip("/"), str(plane.workers.base_url).rstrip("/")
    return Fuzzed(*urls, description, over, live, running, token)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def fuzzed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    made: Callable[[], str] = (lambda: "") if request.param == "sqlite" else request.getfixturevalue("postgres")
    given = load(data=folder, database_url=made(), port=0, allowed_paths=[folder], hub_timeout=0.5, shutdown_grace=1.0)
    ready, found, stopped = threading.Event(), [], threading.Event()

    async def run() -> None:
        async with plane_on(given) as plane:
            found.append(await filled(plane))
            ready.set()
            await asyncio.to_thread(stopped.wait)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    while not ready.wait(0.05):
        assert thread.is_alive()
    yield found[0]
    stopped.set()
    thread.join(30)


schemathesis.checks.load_all_checks()
CHECKS = schemathesis.checks.CHECKS.get_by_names(
    ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
)


def hold(operation: schemathesis.APIOperation, prepared: Callable[[schemathesis.Case, int], dict[str, str]]) -> None:
    """Asks for an operation a few times. `prepared` makes most requests, by their number, some that are not just
    refused, and gives their headers."""
    numbers = itertools.count()

    @settings(
        max_examples=8,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def holds(case: schemathesis.Case) -> None:
        headers = prepared(case, next(numbers))
        # A stream that does not end fails here.
        case.call_and_validate(headers=headers, timeout=20, checks=CHECKS)

    holds()


def test_no_request_breaks_the_server_or_its_description(fuzzed: Fuzzed) -> None:
    def prepared(case: schemathesis.Case, number: int) -> dict[str, str]:
        if number % 4 and "job" in case.path_parameters:
            case.path_parameters["job"] = fuzzed.over if case.method == "GET" else fuzzed.live
        return {} if number % 2 else {"Accept": "application/json"}

    for operation in schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json").get_all_operations():
        hold(operation.ok(), prepared)


def test_no_message_breaks_the_workers_listener_or_its_description(fuzzed: Fuzzed) -> None:
    def prepared(case: schemathesis.Case, number: int) -> dict[str, str]:
        return {"Authorization": f"Bearer {fuzzed.token}"} if number % 8 else {}

    described = schemathesis.openapi.from_dict(fuzzed.for_workers)
    described.config.update(base_url=fuzzed.workers)
    for operation in described.get_all_operations():
        hold(operation.ok(), prepared)
