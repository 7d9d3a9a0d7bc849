"""The answers that a job shows to people: at once, or as server-sent events."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import RowMapping
from sqlalchemy.engine import Connection
from starlette.responses import StreamingResponse

from api import openapi
from api.auth import Viewer
from api.control import Control, ControlPlane
from api.domain.access import Caller
from api.errors import documented
from api.routes.again import Again
from api.routes.parameters import JobId, LastEventId, refusing
from api.routes.streamed import AttemptNumber, Follow, page_of, stream_of, wants_stream
from api.store import jobs, samples
from api.views import Page, SampleView

router = APIRouter(prefix="/v1/jobs/{job}/samples", tags=["history"], route_class=Again)

Step = Annotated[int | None, Query(ge=0, le=2**53, description="absent: all")]
Row = Annotated[int | None, Query(ge=0, le=2**53, description="samples after this row")]
# A sample holds up to some hundred kB.
Limit = Annotated[int, Query(ge=1, le=200, description="samples a page")]


@router.get(
    "",
    response_model=Page[SampleView],
    responses={**openapi.followed(SampleView, "ids are row ids"), **documented(404, 422)},
)
async def listed(
    job: JobId,
    request: Request,
    control: Control,
    caller: Viewer,
    step: Step = None,
    attempt: AttemptNumber = None,
    superseded: Annotated[bool, Query(description="also samples that a later attempt has made again")] = False,
    order: Annotated[Literal["id", "-id"], Query(description="-id: the newest first")] = "id",
    limit: Limit = 50,
    after: Row = None,
    follow: Follow = False,
    last_event_id: LastEventId = None,
) -> Any:
    """Samples in the order they came, after row `after`. Of an iteration not all answers need be there."""
    if wants_stream(request, follow):
        return await _stream(job, control, caller, step, attempt, last_event_id, after or 0)
    choice = samples.Choice(step, attempt, superseded)

    def look(connection: Connection) -> Sequence[RowMapping]:
        jobs.require(connection, job, caller.project)
        return samples.page(connection, job, choice, after=after, limit=limit + 1, newest_first=order == "-id")

    with refusing():
        return page_of(Page[SampleView], await control.database.look(look), limit, "id")


@router.get(
    "/stream",
    response_class=StreamingResponse,
    responses={**openapi.stream(SampleView, "ids are row ids"), **documented(404, 422)},
)
async def stream(
    job: JobId,
    control: Control,
    caller: Viewer,
    step: Step = None,
    attempt: AttemptNumber = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Samples as they arrive. Asked again after the last of a job that is over, it answers 204."""
    return await _stream(job, control, caller, step, attempt, last_event_id)


async def _stream(
    job: str,
    control: ControlPlane,
    caller: Caller,
    step: int | None,
    attempt: int | None,
    last_event_id: str | None,
    after: int = 0,
) -> Response:
    def wanted(row: Any) -> bool:
        return step in (None, row.step) and attempt in (None, row.attempt)

    return await stream_of(
        control, caller, "samples", job, SampleView, "id", last_event_id=last_event_id, after=after, wanted=wanted
    )
