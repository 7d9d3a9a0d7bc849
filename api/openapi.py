"""The parts of the OpenAPI description that routes do not say by themselves: raw bodies, problems, streams."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.errors import MEDIA_TYPE, ProblemDetails
from api.views import StreamEnd

_DESCRIPTION = """Runs the stages of RLHF as jobs. Errors are problem+json (RFC 9457).
Times are RFC 3339 UTC, sizes bytes. Lists come in pages: give a page's `next` as `after`.
Creates take an Idempotency-Key (24 h), changes an If-Match."""
_bodies: list[type[BaseModel]] = [ProblemDetails, StreamEnd]


def body(model: type[BaseModel], *, media: str = "application/json", required: bool = True) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body itself, in the form of `model`."""
    if model not in _bodies:
        _bodies.append(model)
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": required, "content": {media: {"schema": schema}}}}


_SENT = "With a Last-Event-ID: the job is over, and nothing was left to send"


def stream(item: type[BaseModel], ids: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with server-sent events."""
    if item not in _bodies:
        _bodies.append(item)
    shapes = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in (item, StreamEnd)]
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": shapes}}
    properties = {"data": data, "id": {"type": "string"}, "event": {"enum": ["message", "end"]}}
    event = {"type": "object", "required": ["data", "id"], "properties": properties}
    return {
        200: {
            "description": f"Server-sent events, the `data` of each a `{item.__name__}` as JSON; {ids}. "
            "The last one, of type `end`, says that the job is over and everything was sent.",
            "content": {"text/event-stream": {"itemSchema": event}},
        },
        204: {"description": _SENT},
    }


def followed(item: type[BaseModel], ids: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with a page, or where that is asked for with server-sent events."""
    streamed = stream(item, ids)[200]
    return {
        200: {
            "description": "A page. With `follow`, or `Accept: text/event-stream`: " + streamed["description"],
            "content": streamed["content"],
        },
        204: {"description": f"Of a stream. {_SENT}"},
    }


def prefixed(name: str, description: str, entries: int) -> dict[str, Any]:
    """`openapi_extra` of a route that takes query parameters `name[KEY]=VALUE`, which it reads itself."""
    no_nul = r"^[^\x00]*$"
    schema = {
        "type": "object",
        "maxProperties": entries,
        "propertyNames": {"pattern": no_nul},
        "additionalProperties": {"type": "string", "pattern": no_nul},
    }
    where = {"name": name, "in": "query", "required": False, "style": "deepObject", "explode": True}
    return {"parameters": [{**where, "description": description, "schema": schema}]}


def install(app: FastAPI, *, for_pages: bool, keyed: bool = False) -> None:
    """Gives `app` a description that is complete.

    `for_pages`: it looks at where a web page that asks comes from. `keyed`: it asks for API keys.
    """

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
                for method, operation in path.items():
                    writes = method != "get" and operation["tags"] != ["estimate"]
                    called = "security" in operation
                    more = [404] * called + [401, 403] * (called and keyed) + [403] * for_pages + [507] * writes
                    _as_problem(operation["responses"], *more)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _as_problem(responses: dict[str, Any], *more: int) -> None:
    """FastAPI's own validation errors leave as problems too. What any route may answer is said of each."""
    problem = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    for status in (400, 503, *more, *([422] if "422" in responses else [])):
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": problem}
