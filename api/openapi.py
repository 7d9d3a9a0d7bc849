"""The parts of the OpenAPI description that routes do not say by themselves: raw bodies, problems, streams."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.errors import MEDIA_TYPE, ProblemDetails

_DESCRIPTION = """Runs the stages of RLHF as jobs. Errors are problem+json (RFC 9457).
Times are RFC 3339 UTC, sizes bytes. Lists come in pages: give a page's `next` as `after`.
Creates take an Idempotency-Key (24 h), changes an If-Match."""
_bodies: list[type[BaseModel]] = [ProblemDetails]


def body(model: type[BaseModel], *, media: str = "application/json", required: bool = True) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body itself, in the form of `model`."""
    if model not in _bodies:
        _bodies.append(model)
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": required, "content": {media: {"schema": schema}}}}


def stream(item: type[BaseModel], ids: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with server-sent events."""
    if item not in _bodies:
        _bodies.append(item)
    return {
        200: {
            "description": f"Server-sent events, the `data` of each a `{item.__name__}` as JSON; {ids}. "
            "The last one, of type `end`, says that the job is over and everything was sent.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        204: {"description": "With a Last-Event-ID: the job is over, and nothing was left to send"},
    }


def install(app: FastAPI) -> None:
    """Gives `app` a description that is complete."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes)
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            _, definitions = models_json_schema(
                [(model, "validation") for model in _bodies], ref_template="#/components/schemas/{model}"
            )
            for name, definition in definitions["$defs"].items():
                schemas.setdefault(name, definition)
            for definition in schemas.values():
                if definition.get("properties", {}).get("spec", {}).get("title") == "JobSpec":
                    definition["properties"]["spec"] = {"$ref": "#/components/schemas/JobSpec"}
            schemas.pop("HTTPValidationError", None)
            schemas.pop("ValidationError", None)
            for path in schema["paths"].values():
                for operation in path.values():
                    _as_problem(operation["responses"])
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _as_problem(responses: dict[str, Any]) -> None:
    """FastAPI's own validation errors leave as problems too. What any route may answer is said of each."""
    problem = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    responses["400"] = {"description": "Bad Request", "content": problem}
    responses["503"] = {"description": "Service Unavailable", "content": problem}
    if "422" in responses:
        responses["422"] = {"description": "Unprocessable Content", "content": problem}
