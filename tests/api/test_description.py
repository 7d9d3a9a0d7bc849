"""The OpenAPI description: requests made from it never break the server, and answers are as it says."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings

from api.control import ControlPlane
from api.main import create_app
from api.settings import load
from api.store.migrate import migrate
from tests.api.conftest import Plane


async def test_every_route_says_how_it_refuses(plane: Plane) -> None:
    description = (await plane.http.get("/openapi.json")).json()
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert list(answer["content"]) == ["application/problem+json"], (path, method, status)
    create = description["paths"]["/v1/jobs"]["post"]
    assert create["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/JobSpec")
    assert (
        "text/event-stream"
        in description["paths"]["/v1/jobs/{job}/events/stream"]["get"]["responses"]["200"]["content"]
    )


async def test_every_reference_in_the_description_leads_somewhere(plane: Plane) -> None:
    description = (await plane.http.get("/openapi.json")).json()
    names = set(description["components"]["schemas"])

    def references(value: object) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(ref := value.get("$ref"), str):
                yield ref
            for entry in value.values():
                yield from references(entry)
        elif isinstance(value, list):
            for entry in value:
                yield from references(entry)

    assert {ref.removeprefix("#/components/schemas/") for ref in references(description)} <= names


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A control plane in a thread: the requests come from a synchronous client."""
    folder: Path = tmp_path_factory.mktemp("fuzz")
    control = ControlPlane.of(load(data=folder, database_url="", allowed_paths=[folder], hub_timeout=0.5))
    app = create_app(control)

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))

    async def run() -> None:
        control.store.prepare()
        await migrate(control.database)
        await server.serve()
        await control.database.dispose()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.02)
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def described(address: str) -> schemathesis.schemas.BaseSchema:
    """What schemathesis makes requests from; streams do not end by themselves, and are left out."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    return schema.exclude(path_regex="/stream$")


schemathesis.checks.load_all_checks()
CHECKS = schemathesis.checks.CHECKS.get_by_names(
    ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
)


def test_no_request_breaks_the_server_or_its_description(described: schemathesis.schemas.BaseSchema) -> None:
    for result in described.get_all_operations():
        operation = result.ok()

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
            if case.query:
                case.query.pop("follow", None)
            case.call_and_validate(headers={"Accept": "application/json"}, timeout=30, checks=CHECKS)

        holds()
