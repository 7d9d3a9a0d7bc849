"""What all of a job's histories have in common: pages of rows, and the same rows as server-sent events."""

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from sqlalchemy import RowMapping
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import StreamingResponse

from api.auth import still_good
from api.control import ControlPlane
from api.domain.access import Caller
from api.errors import Refusal
from api.routes.parameters import refusing
from api.store import jobs
from api.store.trouble import trouble
from api.streams import Head, RowKind
from api.views import Page, StreamEnd
from worker.contract.problem import Problem

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

Number = Annotated[int, Query(ge=0, le=2**53, description="entries after this one")]
AttemptNumber = Annotated[int | None, Query(ge=1, le=2**31 - 1, description="absent: all (logs: the newest)")]
Follow = Annotated[bool, Query(description="answer with a stream, as with `Accept: text/event-stream`")]


def page_of(page: type[Page[Any]], rows: Sequence[RowMapping], limit: int, cursor: str) -> Response:
    """The first `limit` rows; `cursor` is the column that the next page goes on from, if there are more."""
    more = str(rows[limit - 1][cursor]) if len(rows) > limit else None
    view = page.model_validate({"data": rows[:limit], "next": more})
    # Checked when it was made: FastAPI would do so once more, and this is asked for again and again.
    return Response(view.model_dump_json(), media_type="application/json")


async def stream_of(
    control: ControlPlane,
    caller: Caller,
    kind: RowKind,
    job: str,
    view: type[BaseModel],
    id: str,
    *,
    last_event_id: str | None,
    after: int = 0,
    wanted: Callable[[Any], bool] = lambda row: True,
) -> Response:
    """A job's rows of one kind as they come, after the last one that was sent, or `after`; 204 where there are no more.

    `id` is the column that numbers them. Raises Refusal 404, 422.
    """
    cursor = _number(last_event_id, after)
    await newest_attempt(control, caller, job)
    if last_event_id and await control.streams.sent_all(kind, job, cursor):
        return Response(status_code=204)
    return streaming(control, caller, _events(control, kind, job, cursor, view, id, wanted))


def streaming(control: ControlPlane, caller: Caller, content: AsyncIterator[bytes]) -> StreamingResponse:
    """Server-sent events, which nobody on the way should keep back; they end with the key that they were asked for."""
    return StreamingResponse(
        _as_long_as_allowed(control, caller, content), media_type="text/event-stream", headers=_HEADERS
    )


def end(head: Head, id: str) -> bytes:
    """The last event of a stream."""
    # With an id, even where nothing was sent before: a browser that comes back says it, and is told that this was all.
    return format_sse_event(event="end", data_str=StreamEnd(phase=head.phase).model_dump_json(), id=id)


def wants_stream(request: Request, follow: bool) -> bool:
    """Whether a list is asked for as a stream."""
    return follow or "text/event-stream" in request.headers.get("accept", "")


def bad_id() -> Refusal:
    """The answer to a Last-Event-ID that no stream has sent."""
    message = "write the id of the last event that this stream has sent"
    return Refusal(422, f"Last-Event-ID: {message}", [Problem("Last-Event-ID", message)])


async def _as_long_as_allowed(
    control: ControlPlane, caller: Caller, content: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    try:
        async for part in content:
            if not await still_good(control, caller):
                return
            yield part
    except SQLAlchemyError as error:
        if trouble(error) is None:
            raise
        # It ends as at a shutdown: who comes back is told from where it stopped. The poll's log has the trouble.


async def newest_attempt(control: ControlPlane, caller: Caller, job: str) -> int:
    """The number of the job's newest attempt. Raises Refusal 404."""
    with refusing():
        return await control.database.look(partial(jobs.newest_attempt, id=job, project=caller.project))


async def _events(
    control: ControlPlane,
    kind: RowKind,
    job: str,
    cursor: int,
    view: type[BaseModel],
    id: str,
    wanted: Callable[[Any], bool],
) -> AsyncIterator[bytes]:
    async for batch in control.streams.rows(kind, job, cursor):
        if isinstance(batch, Head):
            yield end(batch, str(cursor))
            return
        cursor = getattr(batch[-1], id) if batch else cursor
        sent = [
            format_sse_event(data_str=view.model_validate(row).model_dump_json(), id=str(getattr(row, id)))
            for row in batch
            if wanted(row)
        ]
        yield b"".join(sent) or b": still here\n\n"


def _number(last_event_id: str | None, otherwise: int) -> int:
    if not last_event_id:
        return otherwise
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 16:
        raise bad_id()
    return int(last_event_id)
