"""Server-sent events: one poll of the database every half second feeds all streams of the process."""

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from api.domain.job import FINAL, Phase
from api.seldom import Seldom
from api.store import events, metrics, samples
from api.store.database import Database
from api.store.tables import EventRow, JobRow, MetricRow, SampleRow
from api.store.trouble import trouble

POLL = 0.5
HEARTBEAT = 15.0
# Between two polls at least.
_GAP = 0.05
_BUFFER = 2000
_PAGE = 500
_BATCH = 5000
# Jobs in one query.
_CHUNK = 1000

Row = TypeVar("Row", EventRow, MetricRow, SampleRow)
RowKind = Literal["events", "metrics", "samples"]
Kind = RowKind | Literal["logs"]
log = logging.getLogger(__name__)


class Head(NamedTuple):
    """Where a job is, as the last poll saw it."""

    phase: Phase
    attempt: int
    over: bool
    """No more rows will come."""
    events: int = 0
    """The number of its newest event."""


class Source(NamedTuple, Generic[Row]):
    """How rows of one kind are read and numbered."""

    after: Callable[[AsyncSession, dict[str, int], int], Awaitable[Sequence[Row]]]
    number: Callable[[Row], int]
    newest: Callable[[AsyncSession, Sequence[str]], Awaitable[dict[str, int]]]
    share: int = 1
    """One row takes as much memory as so many of others: of these, fewer are held."""


async def _newest_events(session: AsyncSession, jobs: Sequence[str]) -> dict[str, int]:
    rows = await session.execute(select(JobRow.id, JobRow.event_count).where(JobRow.id.in_(jobs)))
    return {id: count for id, count in rows}


async def _newest_metrics(session: AsyncSession, jobs: Sequence[str]) -> dict[str, int]:
    # One look at the index for each: grouped, all points of all these jobs would be read.
    newest = select(func.max(MetricRow.id)).where(MetricRow.job_id == JobRow.id).scalar_subquery()
    rows = await session.execute(select(JobRow.id, newest).where(JobRow.id.in_(jobs)))
    return {id: row for id, row in rows if row is not None}


EVENTS = Source(events.after, lambda row: row.number, _newest_events)
METRICS = Source(metrics.after, lambda row: row.id, _newest_metrics)
SAMPLES = Source(samples.after, lambda row: row.id, samples.newest, share=10)
SOURCES: dict[RowKind, Source[Any]] = {"events": EVENTS, "metrics": METRICS, "samples": SAMPLES}


@dataclass
class Topic:
    """What the poll keeps for all streams of one kind on one job."""

    rows: deque[Any]
    floor: float = math.inf
    """All rows after this number are in `rows`; infinite until the first poll."""
    cursor: int = 0
    head: Head | None = None
    phase: Phase = Phase.CANCELLED
    """The last final one that was seen: what a job ended with whose row is gone since."""
    turn: asyncio.Event = field(default_factory=asyncio.Event)
    watchers: int = 0

    def since(self, number: Callable[[Any], int], cursor: int) -> list[Any]:
        """The rows after `cursor`."""
        # From the newest backwards: most streams have sent all but the last.
        return list(takewhile(lambda row: number(row) > cursor, reversed(self.rows)))[::-1]

    def advance(self) -> None:
        """Wakes all who wait for this topic."""
        turn, self.turn = self.turn, asyncio.Event()
        turn.set()


class Streams:
    """All streams of this process. `run` is its poll; `close` ends every stream."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seldom = Seldom(log)
        self._topics: dict[tuple[Kind, str], Topic] = {}
        self._new = asyncio.Event()
        self.closing = False

    @property
    def open(self) -> int:
        """How many streams there are."""
        return sum(topic.watchers for topic in self._topics.values())

    async def run(self) -> None:
        """Polls for as long as there are streams, until `close`."""
        while not self.closing:
            if not self._topics:
                await self._new.wait()
            self._new.clear()
            try:
                more = await self._poll()
            except Exception as error:
                # A stream outlives a database that is away for a while.
                if (known := trouble(error)) is not None:
                    self._seldom.warning(known.name, f"the streams wait: {known}")
                else:
                    log.exception("the streams' poll failed")
                more = False
            if not more:
                # Where many streams are opened one after the other, each poll is for some of them.
                await asyncio.sleep(_GAP)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL):
                        await self._new.wait()

    def close(self) -> None:
        """Ends all streams."""
        self.closing = True
        self._new.set()
        for topic in self._topics.values():
            topic.advance()

    async def rows(self, kind: RowKind, job: str, cursor: int) -> AsyncIterator[Sequence[Any] | Head]:
        """A job's rows after `cursor`: batches as they come (an empty one: still here), then the Head when it is over.

        Ends without a Head at shutdown. No session is held between batches.
        """
        source = SOURCES[kind]
        page = max(1, _PAGE // source.share)
        with self.topic(kind, job) as topic:
            while not self.closing:
                turn, head, floor = topic.turn, topic.head, topic.floor
                if cursor < floor:
                    async with self._database.reading() as session:
                        batch = await source.after(session, {job: cursor}, page)
                    # The floor of before: one that was set meanwhile may be past rows that this did not see yet.
                    if not batch and floor < math.inf:
                        cursor = int(floor)
                        continue
                else:
                    batch = topic.since(source.number, cursor)[:page]
                if batch:
                    cursor = source.number(batch[-1])
                    yield batch
                elif head is not None and head.over:
                    yield head
                    return
                elif not await self.turned(turn):
                    yield []

    async def head(self, job: str) -> Head | None:
        """Where a job is now, without waiting for the poll."""
        async with self._database.reading() as session:
            return (await _heads(session, [job])).get(job)

    async def sent_all(self, kind: RowKind, job: str, cursor: int) -> bool:
        """Whether the job is over and has no row after `cursor`."""
        async with self._database.reading() as session:
            # The head first, as in the poll.
            head = (await _heads(session, [job])).get(job)
            return head is not None and head.over and not await SOURCES[kind].after(session, {job: cursor}, 1)

    async def turned(self, turn: asyncio.Event) -> bool:
        """Waits for a poll that brings something; False: it is time to say that the stream lives."""
        try:
            async with asyncio.timeout(HEARTBEAT):
                await turn.wait()
        except TimeoutError:
            return False
        return True

    @contextlib.contextmanager
    def topic(self, kind: Kind, job: str) -> Any:
        """The topic, for as long as somebody watches it."""
        share = 1 if kind == "logs" else SOURCES[kind].share
        topic = self._topics.setdefault((kind, job), Topic(rows=deque(maxlen=_BUFFER // share)))
        topic.watchers += 1
        if topic.watchers == 1:
            self._new.set()
        try:
            yield topic
        finally:
            topic.watchers -= 1
            if topic.watchers == 0:
                self._topics.pop((kind, job), None)

    async def _poll(self) -> bool:
        """Brings all topics up to date; gives whether there is more to read at once."""
        topics = dict(self._topics)
        if not topics:
            return False
        more = False
        async with self._database.reading() as session:
            # Heads first: rows that are read after a final phase was seen are all there will ever be.
            heads = await _heads(session, sorted({job for _, job in topics}))
            changed: set[tuple[Kind, str]] = set()
            for of_rows, source in SOURCES.items():
                mine = {job: topic for (kind, job), topic in topics.items() if kind == of_rows}
                more |= await _read(session, of_rows, source, mine, changed, heads)
        for (kind, job), topic in topics.items():
            head = heads.get(job, Head(topic.phase, 0, True))
            if head.phase in FINAL:
                topic.phase = head.phase
            # Logs have no rows: their streams look at the files at every turn.
            # Events of which a stream has none to send are no reason to wake it: it would forget to say that it lives.
            head = head._replace(events=0)
            if (kind, job) in changed or head != topic.head or kind == "logs":
                topic.head = None if more else head
                topic.advance()
        return more


async def _heads(session: AsyncSession, jobs: list[str]) -> dict[str, Head]:
    found = {}
    for start in range(0, len(jobs), _CHUNK):
        query = select(
            JobRow.id, JobRow.phase, JobRow.attempt, JobRow.retry_requested, JobRow.deleted_at, JobRow.event_count
        )
        for row in await session.execute(query.where(JobRow.id.in_(jobs[start : start + _CHUNK]))):
            phase = Phase(row.phase)
            over = row.deleted_at is not None or (phase in FINAL and not row.retry_requested)
            found[row.id] = Head(phase, row.attempt, over, row.event_count)
    return found


async def _read(
    session: AsyncSession,
    kind: Kind,
    source: Source[Any],
    topics: dict[str, Topic],
    changed: set[tuple[Kind, str]],
    heads: dict[str, Head],
) -> bool:
    """Reads what is new into the topics; gives whether a full batch came."""
    more = False
    fresh = [job for job, topic in topics.items() if topic.floor == math.inf]
    if fresh:
        newest = await source.newest(session, fresh)
        for job in fresh:
            topics[job].cursor = newest.get(job, 0)
            topics[job].floor = topics[job].cursor
            changed.add((kind, job))
    jobs = list(topics)
    if kind == "events":
        # Its head tells whether there is more: of most jobs there is not. One whose row is gone has no events.
        jobs = [job for job in jobs if (head := heads.get(job)) is not None and head.events > topics[job].cursor]
    for start in range(0, len(jobs), _CHUNK):
        cursors = {job: topics[job].cursor for job in jobs[start : start + _CHUNK]}
        rows = await source.after(session, cursors, _BATCH // source.share)
        more |= len(rows) == _BATCH // source.share
        for row in rows:
            topic = topics[row.job_id]
            if len(topic.rows) == topic.rows.maxlen:
                topic.floor = source.number(topic.rows[0])
            topic.rows.append(row)
            topic.cursor = source.number(row)
            changed.add((kind, row.job_id))
    return more
