"""What workers call, on a listener of its own. Every call carries its attempt's token."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ValidationError
from sqlalchemy.exc import StatementError

from api import bodies, openapi
from api.control import Control
from api.errors import Refusal, documented, invalid
from api.store import reports
from api.store.database import never_stored
from api.tokens import BadToken, Claim
from worker.contract.check import problem
from worker.contract.protocol import Answer, Finish, Report

log = logging.getLogger(__name__)
router = APIRouter(prefix="/worker/v1", tags=["worker"])
Message = TypeVar("Message", bound=BaseModel)
_ANSWERS = documented(400, 401, 409, 410, 413, 415, 422)
# Bytes of a report. Not the setting for people's bodies: a worker cannot ask how much it may say, and what is refused
# as too large is lost.
_MAX_MESSAGE = 4 * 1024 * 1024
_bearer = HTTPBearer(auto_error=False)


async def _claim(
    control: Control, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Claim:
    """Who calls. Raises Refusal 401."""
    try:
        if credentials is None:
            raise BadToken("send the attempt's token as `Authorization: Bearer …`")
        return await control.tokens.verify(credentials.credentials)
    except BadToken as error:
        raise Refusal(401, str(error), headers={"WWW-Authenticate": "Bearer"}) from None


Caller = Annotated[Claim, Depends(_claim)]


@router.post("/report", response_model=Answer, openapi_extra=openapi.body(Report), responses=_ANSWERS)
async def report(request: Request, control: Control, caller: Caller) -> Response:
    """What an attempt has done since its last report; the answer says what is wanted of it."""
    # By us, who could not take it in: it is sent again.
    outcome: str | None = "failed"
    try:
        message = await _message(request, Report)
        try:
            with _storable():
                accepted = await control.database.put(
                    partial(reports.take_in, job_id=caller.job, attempt=caller.attempt, report=message)
                )
        except (reports.AttemptOver, reports.JobGone):
            outcome = "over"
            raise
        outcome = "accepted"
    except (Refusal, reports.Misplaced) as error:
        # For the crowd: counted where that is seen.
        outcome = None if isinstance(error, Refusal) and error.status == 503 else "refused"
        raise
    finally:
        if outcome is not None:
            control.telemetry.reports.labels(outcome).inc()
    if accepted.first:
        await control.wakeups.wake(caller.job)
    # As it is: this is answered hundreds of times a second.
    return Response(accepted.answer.model_dump_json(), media_type="application/json")


@router.post("/finish", openapi_extra=openapi.body(Finish), responses=_ANSWERS)
async def finish(request: Request, control: Control, caller: Caller) -> Answer:
    """An attempt's own word of its end. The first one counts."""
    message = await _message(request, Finish)
    with _storable():
        first = await control.database.put(
            partial(reports.finish, job_id=caller.job, attempt=caller.attempt, end=message)
        )
    if first:
        await control.wakeups.wake(caller.job)
    return Answer()


@contextmanager
def _storable() -> Iterator[None]:
    """Refuses what no try would store: a worker sends what it gets a 5xx for again and again."""
    try:
        yield
    except (StatementError, OverflowError) as error:
        if not never_stored(error):
            raise
        log.warning("a message of a worker cannot be stored: %s", error)
        raise Refusal(422, "a value in it cannot be stored; the control plane's log says which") from None


async def _message(request: Request, model: type[Message]) -> Message:
    _, document = await bodies.read_json(request, _MAX_MESSAGE)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise invalid([problem(detail, model) for detail in error.errors()[:100]]) from None
