"""What a job has done: attempts, events, metrics, checkpoints, logs; at once, or as server-sent events."""

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.sse import format_sse_event
from pydantic import Field
from sqlalchemy import RowMapping
from sqlalchemy.engine import Connection
from starlette.responses import StreamingResponse

from api import openapi
from api.auth import Viewer
from api.control import Control, ControlPlane
from api.domain.access import Caller
from api.errors import documented
from api.logs import Part, Place
from api.routes.again import Again
from api.routes.parameters import TEXT, JobId, LastEventId, Limit, refusing
from api.routes.streamed import (
    AttemptNumber,
    Follow,
    Number,
    bad_id,
    end,
    newest_attempt,
    page_of,
    stream_of,
    streaming,
    wants_stream,
)
from api.store import curves, events, jobs, metrics
from api.views import AttemptView, CheckpointView, EventView, LogLine, MetricPage, MetricView, Page, Reduced

router = APIRouter(prefix="/v1/jobs/{job}", tags=["history"], route_class=Again)

MetricNames = Annotated[
    list[Annotated[str, Field(max_length=64, pattern=TEXT)]] | None, Query(alias="name", description="any of these")
]
Rank = Annotated[int | None, Query(ge=0, le=99999, description="absent: all ranks")]


@router.get("/attempts", responses=documented(404, 422))
async def attempts(job: JobId, control: Control, caller: Viewer) -> Page[AttemptView]:
    """All attempts, the first one first."""
    with refusing():
        async with control.database.reading() as session:
            await jobs.get(session, job, caller.project)
            rows = await jobs.attempts(session, job)
    return Page[AttemptView](data=[AttemptView.model_validate(row) for row in rows])


@router.get("/checkpoints", responses=documented(404, 422))
async def checkpoints(job: JobId, control: Control, caller: Viewer) -> Page[CheckpointView]:
    """All checkpoints, the oldest first; those that were pruned too."""
    with refusing():
        async with control.database.reading() as session:
            await jobs.get(session, job, caller.project)
            rows = await metrics.checkpoints(session, job)
    return Page[CheckpointView](data=[CheckpointView.model_validate(row) for row in rows])


@router.get(
    "/events",
    response_model=Page[EventView],
    responses={**openapi.followed(EventView, "ids are event numbers"), **documented(404, 422)},
)
async def listed_events(
    job: JobId,
    request: Request,
    control: Control,
    caller: Viewer,
    limit: Limit = 100,
    after: Number = 0,
    follow: Follow = False,
    last_event_id: LastEventId = None,
) -> Any:
    """Events in order, after number `after`."""
    if wants_stream(request, follow):
        return await _event_stream(job, control, caller, last_event_id, after)

    def look(connection: Connection) -> Sequence[RowMapping]:
        jobs.require(connection, job, caller.project)
        return events.page(connection, job, after=after, limit=limit + 1)

    with refusing():
        rows = await control.database.look(look)
    return page_of(Page[EventView], rows, limit, "number")


@router.get(
    "/events/stream",
    response_class=StreamingResponse,
    responses={**openapi.stream(EventView, "ids are event numbers"), **documented(404, 422)},
)
async def event_stream(job: JobId, control: Control, caller: Viewer, last_event_id: LastEventId = None) -> Response:
    """Events as they happen. Asked again after the last of a job that is over, it answers 204."""
    return await _event_stream(job, control, caller, last_event_id)


async def _event_stream(
    job: str, control: ControlPlane, caller: Caller, last_event_id: str | None, after: int = 0
) -> Response:
    return await stream_of(
        control, caller, "events", job, EventView, "number", last_event_id=last_event_id, after=after
    )


@router.get(
    "/metrics",
    response_model=MetricPage,
    responses={**openapi.followed(MetricView, "ids are row ids"), **documented(404, 422)},
)
async def listed_metrics(
    job: JobId,
    request: Request,
    control: Control,
    caller: Viewer,
    name: MetricNames = None,
    attempt: AttemptNumber = None,
    superseded: Annotated[bool, Query(description="also points that a later attempt has made again")] = False,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    after: Number = 0,
    downsample: Annotated[
        int | None,
        Query(
            ge=1,
            le=10_000,
            description="at most so many points a name, in one page: of equal parts of the steps the lowest and the "
            "highest, and the first and the last of all; from 4 on the curve's own extremes are among them",
        ),
    ] = None,
    from_step: Annotated[int | None, Query(ge=0, le=2**53, description="no points of earlier steps")] = None,
    to_step: Annotated[int | None, Query(ge=0, le=2**53, description="no points of later steps")] = None,
    follow: Follow = False,
    last_event_id: LastEventId = None,
) -> Any:
    """Points in the order they came, after row `after`."""
    if wants_stream(request, follow):
        return await _metric_stream(job, control, caller, name, attempt, last_event_id, after)
    choice = metrics.Choice(name or (), attempt, superseded, from_step, to_step)

    def look(connection: Connection) -> Sequence[RowMapping]:
        jobs.require(connection, job, caller.project)
        return metrics.page(connection, job, choice, after=after, limit=limit + 1)

    with refusing():
        if downsample is None:
            return page_of(MetricPage, await control.database.look(look), limit, "id")
        # Not by `look`: this may read whole curves, and would keep those waiting who only look. Of one state, since
        # summaries and points must fit each other.
        async with control.database.reading(one_state=True) as session:
            await jobs.get(session, job, caller.project)
            connection = await session.connection()
            shown = await connection.run_sync(curves.reduced, job, choice, downsample)
    told = [Reduced(name=curve.name, points=curve.points, shown=len(curve.shown)) for curve in shown]
    page = MetricPage.model_validate({"data": [row for curve in shown for row in curve.shown], "reduced": told})
    # Checked when it was made, and long.
    return Response(page.model_dump_json(), media_type="application/json")


@router.get(
    "/metrics/stream",
    response_class=StreamingResponse,
    responses={**openapi.stream(MetricView, "ids are row ids"), **documented(404, 422)},
)
async def metric_stream(
    job: JobId,
    control: Control,
    caller: Viewer,
    name: MetricNames = None,
    attempt: AttemptNumber = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Points as they arrive. Asked again after the last of a job that is over, it answers 204."""
    return await _metric_stream(job, control, caller, name, attempt, last_event_id)


async def _metric_stream(
    job: str,
    control: ControlPlane,
    caller: Caller,
    name: list[str] | None,
    attempt: int | None,
    last_event_id: str | None,
    after: int = 0,
) -> Response:
    def wanted(row: Any) -> bool:
        return (not name or row.name in name) and attempt in (None, row.attempt)

    return await stream_of(
        control, caller, "metrics", job, MetricView, "id", last_event_id=last_event_id, after=after, wanted=wanted
    )


@router.get(
    "/logs",
    response_model=Page[LogLine],
    responses={**openapi.followed(LogLine, "ids are `attempt/rank:offset,…`"), **documented(404, 422)},
)
async def logs(
    job: JobId,
    request: Request,
    control: Control,
    caller: Viewer,
    rank: Rank = None,
    attempt: AttemptNumber = None,
    tail: Annotated[int | None, Query(ge=0, le=100_000, description="the last lines; absent: the last MiB")] = None,
    follow: Follow = False,
    last_event_id: LastEventId = None,
) -> Any:
    """The log of each rank, in order of rank."""
    if wants_stream(request, follow):
        return await log_stream(job, control, caller, rank, attempt, last_event_id)
    newest = await newest_attempt(control, caller, job)
    number = attempt or newest

    def read() -> list[LogLine]:
        ranks = control.logs.ranks(job, number)
        return [
            LogLine(attempt=number, rank=r, text=control.logs.tail(job, number, r, tail))
            for r in ranks
            if rank in (None, r)
        ]

    return Page[LogLine](data=await control.store.run(read))


@router.get(
    "/logs/stream",
    response_class=StreamingResponse,
    responses={**openapi.stream(LogLine, "ids are `attempt/rank:offset,…`"), **documented(404, 422)},
)
async def log_stream(
    job: JobId,
    control: Control,
    caller: Viewer,
    rank: Rank = None,
    attempt: AttemptNumber = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Log lines as they are written, and those of the attempts that follow, unless `attempt` is given. Asked again
    after the last of a job that is over, it answers 204."""
    newest = await newest_attempt(control, caller, job)
    try:
        place = Place.parse(last_event_id) if last_event_id else Place(attempt or newest, {})
    except ValueError:
        raise bad_id() from None
    wanted = [] if rank is None else [rank]
    if last_event_id and await _log_is_all_sent(job, control, place, wanted, pinned=attempt is not None):
        return Response(status_code=204)
    return streaming(control, caller, _log_lines(control, job, place, wanted, pinned=attempt is not None))


async def _log_is_all_sent(job: str, control: ControlPlane, place: Place, ranks: list[int], *, pinned: bool) -> bool:
    head = await control.streams.head(job)
    if head is None or not (head.over or (pinned and head.attempt > place.attempt)):
        return False
    if head.attempt > place.attempt and not pinned:
        return False
    # A copy: looking moves a place on.
    there = Place(place.attempt, dict(place.offsets))
    return await control.store.run(there.next, control.logs, job, ranks, last=True) is None


async def _log_lines(
    control: ControlPlane, job: str, place: Place, ranks: list[int], *, pinned: bool
) -> AsyncIterator[bytes]:
    with control.streams.topic("logs", job) as topic:
        while not control.streams.closing:
            turn, head = topic.turn, topic.head
            ended = head is not None and (head.over or head.attempt > place.attempt)
            part: Part | None = await control.store.run(place.next, control.logs, job, ranks, last=ended)
            if part is not None:
                line = LogLine(attempt=place.attempt, rank=part.rank, text=part.text)
                yield format_sse_event(data_str=line.model_dump_json(), id=str(place))
            elif head is not None and head.attempt > place.attempt and not pinned:
                place.attempt, place.offsets = place.attempt + 1, {}
            elif head is not None and ended:
                yield end(head, str(place))
                return
            elif not await control.streams.turned(turn):
                yield b": still here\n\n"
