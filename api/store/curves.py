"""Long curves, reduced to what a screen shows: of each part of the steps the lowest point and the highest.

Nobody reads a million points for that. Whenever reports have passed `SPAN` steps, the extremes of these steps are kept
beside the points (`metric_spans`), curve by curve. An attempt's `summed` is the step up to which that is done; what is
past it, and what lies in a span that is asked for in part, is read from the points themselves.

The release before takes in reports and sums up nothing. `summed_seq` is the last report that the summaries know of:
where it is not the attempt's last, they may lack points, and count no more.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import CTE, ColumnElement, RowMapping, bindparam, case, delete, func, insert, or_, select
from sqlalchemy.engine import Connection

from api.store.metrics import Choice
from api.store.tables import AttemptRow, MetricRow, SpanRow

SPAN = 64
"""Steps that are summed up in one row."""
# Where more spans than these are told of once more, all that follows the first of them is summed up anew.
_FEW = 8
_POINTS: Any = MetricRow.__table__
_SPANS: Any = SpanRow.__table__
_ATTEMPTS: Any = AttemptRow.__table__
# Ids in one query: SQLite has a limit.
_CHUNK = 5000


@dataclass(frozen=True, slots=True)
class Curve:
    """The points that are shown of one curve, and how many there are."""

    name: str
    points: int
    shown: Sequence[RowMapping]


def sum_up(connection: Connection, job: str, attempt: int, summed: int, steps: Iterable[int]) -> int:
    """Keeps the summaries right after points of these steps came in; gives the step up to which all is summed up now.

    The caller holds the lock of the job's row.
    """
    spans = {step // SPAN for step in steps}
    again = sorted(span for span in spans if span * SPAN < summed)
    if len(again) > _FEW:
        connection.execute(_forget(job, attempt).where(_SPANS.c.span >= again[0]))
        summed, again = again[0] * SPAN, []
    for span in again:
        connection.execute(_forget(job, attempt).where(_SPANS.c.span == span))
        _keep(connection, job, attempt, span * SPAN, (span + 1) * SPAN)
    until = max(spans) * SPAN
    if until <= summed:
        return summed
    _keep(connection, job, attempt, summed, until)
    return until


def forget(connection: Connection, job: str, attempt: int) -> None:
    """No summaries of this attempt are kept from now on: its points are read."""
    connection.execute(_forget(job, attempt))


def reduced(connection: Connection, job: str, choice: Choice, points: int) -> list[Curve]:
    """At most `points` points of each curve: of equal parts of its steps the lowest and the highest, and the curve's
    first and last. All of them, where there are no more."""
    pieces = _pieces(connection, job, choice)
    names = sorted(choice.names) if choice.names else _names(connection, job, pieces)
    curves = [_reduced(connection, job, name, pieces, choice, points) for name in names]
    return [curve for curve in curves if curve is not None]


class _Piece(NamedTuple):
    """The steps that count of one attempt, from `start` to before `end`; those before `summed` have summaries."""

    attempt: int
    start: int
    end: float
    summed: int


class _Extreme(NamedTuple):
    value: float
    id: int


@dataclass
class _Parts:
    """The extremes of each part, as they are found."""

    origin: int
    width: int
    points: int = 0
    low: dict[int, _Extreme] = field(default_factory=dict)
    high: dict[int, _Extreme] = field(default_factory=dict)

    def take(self, part: int, points: int, low: _Extreme, high: _Extreme) -> None:
        """Some points of a part."""
        self.points += points
        if part not in self.low or low.value < self.low[part].value:
            self.low[part] = low
        if part not in self.high or high.value > self.high[part].value:
            self.high[part] = high


def _reduced(
    connection: Connection, job: str, name: str, pieces: Sequence[_Piece], choice: Choice, points: int
) -> Curve | None:
    found = [ends for piece in pieces if (ends := _ends(connection, job, name, piece)) is not None]
    if not found:
        return None
    first, last = min(start for start, _ in found), max(end for _, end in found)
    count = max(1, (points - 2) // 2)
    width = -(-(last - first + 1) // count)
    origin = first
    if width >= SPAN:
        # Parts that are made of whole spans.
        origin = first // SPAN * SPAN
        width = -(-(last - origin + 1) // (count * SPAN)) * SPAN
    parts = _Parts(origin, width)
    for piece in pieces:
        for start, end in _read_spans(connection, job, name, piece, parts):
            _read_points(connection, job, name, piece.attempt, start, end, parts)
    if parts.points <= points:
        return Curve(name, parts.points, _all(connection, job, name, pieces))
    edges = _edges(connection, job, name, pieces, first, last)
    inner = set() if points < 4 else {x.id for x in (*parts.low.values(), *parts.high.values())}
    return Curve(name, parts.points, _rows(connection, sorted(inner | set(edges[:points]))))


def _read_spans(
    connection: Connection, job: str, name: str, piece: _Piece, parts: _Parts
) -> Iterator[tuple[int, float]]:
    """Takes what is summed up, where parts are made of whole spans; gives the steps that are left to be read."""
    begin, stop = -(-piece.start // SPAN), int(min(piece.end, piece.summed)) // SPAN
    if parts.width % SPAN or parts.origin % SPAN or begin >= stop:
        yield piece.start, piece.end
        return
    query = select(_SPANS.c.span, _SPANS.c.points, _SPANS.c.low, _SPANS.c.low_id, _SPANS.c.high, _SPANS.c.high_id)
    query = query.where(*_of(_SPANS, job, piece.attempt, name), _SPANS.c.span >= begin, _SPANS.c.span < stop)
    for span, points, low, low_id, high, high_id in connection.execute(query):
        part = (span * SPAN - parts.origin) // parts.width
        parts.take(part, points, _Extreme(low, low_id), _Extreme(high, high_id))
    if piece.start < begin * SPAN:
        yield piece.start, begin * SPAN
    if stop * SPAN < piece.end:
        yield stop * SPAN, piece.end


def _read_points(
    connection: Connection, job: str, name: str, attempt: int, start: int, end: float, parts: _Parts
) -> None:
    """Takes points, whose extremes the database finds."""
    part = ((_POINTS.c.step - parts.origin) // parts.width).label("part")
    ranked = select(
        part,
        _POINTS.c.id,
        _POINTS.c.value,
        func.row_number().over(partition_by=part, order_by=(_POINTS.c.value, _POINTS.c.id)).label("place"),
        func.count().over(partition_by=part).label("points"),
    ).where(*_of(_POINTS, job, attempt, name), *_between(start, end))
    ends = ranked.subquery()
    query = select(ends).where(or_(ends.c.place == 1, ends.c.place == ends.c.points))
    lows: dict[int, _Extreme] = {}
    # A part's lowest, and then its highest; they may be one.
    for number, id, value, place, points in connection.execute(query.order_by(ends.c.part, ends.c.place)):
        if place == 1:
            lows[number] = _Extreme(value, id)
        if place == points:
            parts.take(number, points, lows[number], _Extreme(value, id))


def _pieces(connection: Connection, job: str, choice: Choice) -> list[_Piece]:
    """What counts of each attempt. What one that went on from before made again is superseded."""
    known = case((_ATTEMPTS.c.summed_seq == _ATTEMPTS.c.last_seq, _ATTEMPTS.c.summed), else_=None)
    query = select(_ATTEMPTS.c.number, known, _ATTEMPTS.c.resumed_from)
    rows = connection.execute(query.where(_ATTEMPTS.c.job_id == job).order_by(_ATTEMPTS.c.number.desc())).all()
    pieces, end = [], math.inf
    until = math.inf if choice.to_step is None else choice.to_step + 1
    for number, summed, resumed_from in rows:
        if choice.attempt in (None, number):
            pieces.append(
                _Piece(number, choice.from_step or 0, until if choice.superseded else min(until, end), summed or 0)
            )
        if resumed_from is not None:
            end = min(end, made_again_from(resumed_from))
    return pieces[::-1]


def made_again_from(resumed_from: int) -> int:
    """The first step that an attempt tells of again. One that begins anew evaluates before its first step, too."""
    return resumed_from + 1 if resumed_from else 0


def _ends(connection: Connection, job: str, name: str, piece: _Piece) -> tuple[int, int] | None:
    where = (*_of(_POINTS, job, piece.attempt, name), *_between(piece.start, piece.end))
    # Each by itself is one look at the index.
    low, high = (select(ask(_POINTS.c.step)).where(*where).scalar_subquery() for ask in (func.min, func.max))
    start, end = connection.execute(select(low, high)).one()
    return None if start is None else (start, end)


def _edges(connection: Connection, job: str, name: str, pieces: Sequence[_Piece], first: int, last: int) -> list[int]:
    """The ids of the curve's first point and of its last."""
    attempts = [piece.attempt for piece in pieces]
    query = select(_POINTS.c.id).where(
        _POINTS.c.job_id == job,
        _POINTS.c.attempt.in_(attempts),
        _POINTS.c.name == name,
        _POINTS.c.step == bindparam("at"),
    )
    found = [
        connection.scalars(query.order_by(_POINTS.c.id if at == first else _POINTS.c.id.desc()).limit(1), {"at": at})
        for at in (first, last)
    ]
    return [id for ids in found for id in ids]


def _all(connection: Connection, job: str, name: str, pieces: Sequence[_Piece]) -> Sequence[RowMapping]:
    rows: list[RowMapping] = []
    for piece in pieces:
        where = (*_of(_POINTS, job, piece.attempt, name), *_between(piece.start, piece.end))
        rows += connection.execute(select(_POINTS).where(*where)).mappings().all()
    return sorted(rows, key=lambda row: (row["step"], row["id"]))


def _rows(connection: Connection, ids: Sequence[int]) -> Sequence[RowMapping]:
    rows: list[RowMapping] = []
    for start in range(0, len(ids), _CHUNK):
        query = select(_POINTS).where(_POINTS.c.id.in_(ids[start : start + _CHUNK]))
        rows += connection.execute(query).mappings().all()
    return sorted(rows, key=lambda row: (row["step"], row["id"]))


def _names(connection: Connection, job: str, pieces: Sequence[_Piece]) -> list[str]:
    found: set[str] = set()
    for piece in pieces:
        names = _curves(job, piece.attempt)
        found |= set(connection.scalars(select(names.c.name).where(names.c.name.is_not(None))))
    return sorted(found)


def _curves(job: str, attempt: int) -> CTE:
    """The names of an attempt's curves: one look at the index for each, however many points there are."""
    own = (_POINTS.c.job_id == job, _POINTS.c.attempt == attempt)
    names = select(func.min(_POINTS.c.name).label("name")).where(*own).cte("names", recursive=True)
    following = select(func.min(_POINTS.c.name)).where(*own, _POINTS.c.name > names.c.name).scalar_subquery()
    return names.union_all(select(following).where(names.c.name.is_not(None)))


def _keep(connection: Connection, job: str, attempt: int, start: int, end: int) -> None:
    """Sums up the spans from step `start` to before `end`."""
    # By their names, as the index has them: it would be read from end to end for the steps alone.
    found = _curves(job, attempt)
    names = connection.scalars(select(found.c.name).where(found.c.name.is_not(None))).all()
    span = (_POINTS.c.step // SPAN).label("span")

    def place(*order: ColumnElement[Any]) -> ColumnElement[int]:
        return func.row_number().over(partition_by=(_POINTS.c.name, span), order_by=(*order, _POINTS.c.id))

    ranked = (
        select(
            _POINTS.c.name,
            span,
            _POINTS.c.id,
            _POINTS.c.value,
            place(_POINTS.c.value).label("from_below"),
            place(_POINTS.c.value.desc()).label("from_above"),
        )
        .where(_POINTS.c.job_id == job, _POINTS.c.attempt == attempt, _POINTS.c.name.in_(names), *_between(start, end))
        .subquery()
    )
    lowest, highest = ranked.c.from_below == 1, ranked.c.from_above == 1
    columns = {
        "job_id": bindparam("its_job", job),
        "attempt": bindparam("its_attempt", attempt),
        "name": ranked.c.name,
        "span": ranked.c.span,
        "points": func.count(),
        "low_id": func.max(case((lowest, ranked.c.id))),
        "low": func.max(case((lowest, ranked.c.value))),
        "high_id": func.max(case((highest, ranked.c.id))),
        "high": func.max(case((highest, ranked.c.value))),
    }
    query = select(*columns.values()).group_by(ranked.c.name, ranked.c.span)
    connection.execute(insert(_SPANS).from_select(list(columns), query))


def _forget(job: str, attempt: int) -> Any:
    return delete(_SPANS).where(_SPANS.c.job_id == job, _SPANS.c.attempt == attempt)


def _of(table: Any, job: str, attempt: int, name: str) -> tuple[ColumnElement[bool], ...]:
    return table.c.job_id == job, table.c.attempt == attempt, table.c.name == name


def _between(start: int, end: float) -> tuple[ColumnElement[bool], ...]:
    from_here: ColumnElement[bool] = _POINTS.c.step >= start
    return (from_here,) if math.isinf(end) else (from_here, _POINTS.c.step < int(end))
