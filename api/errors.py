"""Every error as problem+json (RFC 9457), with a sentence for whoever must act on it."""

import errno
import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from api.seldom import Seldom
from api.store.reports import AttemptOver, JobGone, Misplaced
from api.store.trouble import Trouble, Unavailable, trouble, words
from worker.contract.problem import Problem
from worker.storage.failures import Away, Full, NotThere, StorageFailure

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
# Seconds; what is not here passes sooner.
_RETRY_AFTER = {Trouble.READ_ONLY: "5", Trouble.SLOW: "10"}


class FieldProblem(BaseModel):
    """One thing wrong with the input."""

    path: str = Field(description="where: a dotted path into the body, or the name of a parameter")
    message: str = Field(description="what would be right")


class ProblemDetails(BaseModel):
    """RFC 9457."""

    type: str = "about:blank"
    title: str = Field(description="the status in words")
    status: int
    detail: str = Field(description="a sentence: what was wrong, and what would be right")
    errors: list[FieldProblem] = Field(default=[], description="all that is wrong with the input, each with its path")


class Refusal(Exception):
    """A request that is answered with a problem."""

    def __init__(
        self, status: int, detail: str, errors: Sequence[Problem] = (), headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, errors, headers


def not_found(what: str, id: str) -> Refusal:
    """There is no such thing."""
    return Refusal(404, f"there is no {what} {id[:80]!r}")


def invalid(errors: Sequence[Problem]) -> Refusal:
    """An input of the right form that cannot be taken."""
    number = len(errors)
    return Refusal(
        422, f"{errors[0].path}: {errors[0].message}" if number == 1 else f"{number} things are wrong", errors
    )


def response(
    status: int, detail: str, errors: Sequence[Problem] = (), headers: dict[str, str] | None = None
) -> Response:
    """A problem as a response."""
    document = ProblemDetails(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=_printable(detail),
        errors=[FieldProblem(path=_printable(e.path), message=_printable(e.message)) for e in errors],
    )
    return JSONResponse(document.model_dump(), status, headers, MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these problems."""
    schema = {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}
    return {status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: schema}} for status in statuses}


def install(app: FastAPI) -> None:
    """Makes every error that leaves `app` a problem."""
    seldom = Seldom(log)

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return response(error.status, error.detail, error.errors, error.headers)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = _allowed(request)
        detail = error.detail if error.detail != HTTPStatus(error.status_code).phrase else _sentence(request, headers)
        return response(error.status_code, detail or error.detail, (), headers)

    @app.exception_handler(RequestValidationError)
    async def unprocessable(request: Request, error: RequestValidationError) -> Response:
        problems = [
            # The first part says query, path or header; a caller looks for the name.
            Problem(".".join(str(p) for p in detail["loc"][1:]) or str(detail["loc"][0]), str(detail["msg"]))
            for detail in error.errors()
        ]
        return response(422, "; ".join(f"{p.path}: {p.message}" for p in problems[:5]), problems)

    @app.exception_handler(AttemptOver)
    async def over(request: Request, error: AttemptOver) -> Response:
        return response(409, str(error))

    @app.exception_handler(JobGone)
    async def gone(request: Request, error: JobGone) -> Response:
        return response(410, str(error))

    @app.exception_handler(Misplaced)
    async def misplaced(request: Request, error: Misplaced) -> Response:
        return response(422, str(error))

    @app.exception_handler(StorageFailure)
    async def no_store(request: Request, error: StorageFailure) -> Response:
        # Its own words are for whoever runs the control plane: they name the bucket.
        seldom.warning(type(error).__name__, str(error.strerror or error))
        if isinstance(error, NotThere):
            return response(404, "a part of this is not in the store any more")
        if isinstance(error, Full):
            return response(507, "the store is full; make room in it, then try again")
        if isinstance(error, Away):
            return response(503, "the store does not answer; try again", headers={"Retry-After": "5"})
        said = "the store refuses what the control plane asks of it; its administrator finds in the log why"
        return response(503, said, headers={"Retry-After": "30"})

    @app.exception_handler(OSError)
    async def unwritable(request: Request, error: OSError) -> Response:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise error
        log.error("the disk is full: %s", error)
        return response(507, "the control plane's disk is full; make room on it, then try again")

    async def unavailable(request: Request, error: Exception) -> Response:
        known = Trouble.AWAY if isinstance(error, ConnectionError) else trouble(error)
        if known is None:
            raise error
        seldom.warning(known.name, f"the database: {known.name}: {words(error)}")
        if known is Trouble.FULL:
            return response(507, known)
        return response(503, known, headers={"Retry-After": _RETRY_AFTER.get(known, "1")})

    for kind in (DBAPIError, Unavailable, PoolTimeout, ConnectionError):
        app.add_exception_handler(kind, unavailable)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return response(500, "something went wrong here; the control plane's log says what")


def _sentence(request: Request, headers: dict[str, str]) -> str:
    if "Allow" in headers:
        return f"{request.method[:20]} is not possible here; possible: {headers['Allow']}"
    return f"there is nothing at {request.url.path[:200]}"


def _allowed(request: Request) -> str:
    """All methods of a path: Starlette names those of the first route alone."""
    routes: list[Route] = request.app.state.routes
    methods = {m for r in routes if r.path_regex.match(request.url.path) for m in r.methods or ()}
    return ", ".join(sorted(methods))


def _printable(text: str) -> str:
    """Without lone surrogates, which a caller may have sent and JSON cannot hold."""
    return text.encode("utf-8", "replace").decode()
