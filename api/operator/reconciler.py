"""The operator's loop: who is worth a look, who may start, and nobody waits for anybody else's trouble."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from api.domain.decide import Rules
from api.domain.job import Job, Phase
from api.domain.places import Turn, may_start
from api.operator.awake import Awake
from api.operator.cluster import Cluster, ClusterError
from api.operator.leader import Leader
from api.operator.steps import Steps
from api.store import operations_load
from api.store.database import Database, utcnow
from api.store.operations import Stale
from api.store.operations_leader import Lease, NotLeader
from api.store.trouble import sentence
from api.store.wakeups import Wakeups
from api.stores import Store
from api.tokens import Tokens

# Seconds for the first look at a cluster with very many objects.
_LOOK = 120.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often, in seconds."""

    poll: float = 1.0
    """Between two looks at all jobs, where nothing wakes the operator sooner."""
    least: float = 0.005
    """Between two looks, however often it is woken."""
    left_over: float = 5.0
    """Between two looks at final jobs, most of which want nothing, where nothing wakes the operator sooner."""
    resync: float = 30.0
    """Between two looks at everything that the cluster holds."""
    silence: float = 30.0
    """Who was frozen or asleep for so long heard no reports meanwhile, so that nobody is silent yet."""
    trouble: float = 60.0
    """The longest wait before a job that gave trouble is tried again."""


@dataclass(slots=True)
class _Trouble:
    times: int
    until: float


class Operator:
    """Takes every job to where its owner wants it. `run` returns when `stop` is set; attempts live on."""

    def __init__(
        self,
        *,
        database: Database,
        cluster: Cluster,
        wakeups: Wakeups,
        tokens: Tokens,
        leader: Leader,
        store: Store,
        places: int | None = 1,
        rules: Rules | None = None,
        pace: Pace | None = None,
        concurrency: int = 16,
    ) -> None:
        self._database = database
        self._cluster = cluster
        self._wakeups = wakeups
        self._tokens = tokens
        self._leader = leader
        self._store = store
        self._places = places
        self._rules = rules or Rules()
        self._pace = pace or Pace()
        self._slots = asyncio.Semaphore(concurrency)
        self._working: dict[str, asyncio.Task[None]] = {}
        self._troubles: dict[str, _Trouble] = {}
        self._lost = asyncio.Event()
        self._woken: set[str] = set()
        self._again: set[str] = set()
        """Jobs that were woken while they were worked on: they are looked at once more after that."""
        self._next_look = 0.0
        self._next_whole = 0.0
        self._awake = Awake(self._pace.silence, time.monotonic(), utcnow())
        self.alive = time.monotonic()
        """When the loop last turned, by the monotonic clock."""

    async def run(self, stop: asyncio.Event) -> None:
        """Leads whenever it may, until `stop` is set."""
        loop = asyncio.get_running_loop()
        self._cluster.watch(lambda name: _hint(loop, self._wakeups, name))
        await self._listen()
        while not stop.is_set():
            self._turned()
            lease = await self._leader.acquire()
            if lease is not None:
                await self._lead(lease, stop)
            elif not stop.is_set():
                await _first(self._pace.poll, stop.wait())

    async def _lead(self, lease: Lease, stop: asyncio.Event) -> None:
        self._lost.clear()
        steps = Steps(
            lease,
            leader=self._leader,
            database=self._database,
            cluster=self._cluster,
            tokens=self._tokens,
            store=self._store,
            rules=self._rules,
            up_since=self._up_since,
            hint=self._wakeups.hint,
        )
        keeping = asyncio.create_task(self._leader.keep(lease, lambda: self._cluster.trouble))
        keeping.add_done_callback(lambda _: self._lost.set())
        next_sweep, led, trouble = 0.0, False, None
        try:
            trouble = await self._look_anew(stop)
            led = trouble is None
            while led and not stop.is_set() and not self._lost.is_set():
                self._turned()
                try:
                    if time.monotonic() >= next_sweep and "" not in self._working:
                        next_sweep = time.monotonic() + self._pace.resync
                        self._work("", self._sweep(steps))
                    await self._turn(steps)
                except NotLeader:
                    break
                except Exception as error:  # drivers have errors of their own; the next turn tries again
                    log.warning("the turn failed: %s: %s", type(error).__name__, sentence(error))
                await self._rest(stop)
        finally:
            keeping.cancel()
            for task in self._working.values():
                task.cancel()
            await asyncio.gather(keeping, *self._working.values(), return_exceptions=True)
            self._working.clear()
            await self._leader.release(lease, trouble or None)
        if not led:
            await _first(self._pace.poll, stop.wait())

    async def _look_anew(self, stop: asyncio.Event) -> str | None:
        """Has all be known that the one who led before created and recorded. Gives why the cluster does not answer (""
        if this operator stops): another one, whom it may answer, should lead then."""
        looking = asyncio.ensure_future(self._cluster.look_anew())
        try:
            await _first(_LOOK, stop.wait(), self._lost.wait(), asyncio.shield(looking))
            if looking.done():
                await looking
                return None
            return "no answer" if not stop.is_set() else ""
        except Exception as error:  # whatever it answers, it is asked again
            log.warning("the cluster does not answer, and is not led: %s: %s", type(error).__name__, error)
            return str(error) or type(error).__name__
        finally:
            looking.cancel()

    async def _turn(self, steps: Steps) -> None:
        """Places are given in turn, everything else is done side by side: for all jobs once in a poll, between two
        polls only for those that somebody woke, or that get a place."""
        clock = time.monotonic()
        woken, self._woken = self._woken, set()
        every = clock >= self._next_look
        if self._places is None and not every:
            await self._turn_to(steps, woken, clock)
            return
        if every:
            self._next_look = clock + self._pace.poll
        whole = bool(woken) or clock >= self._next_whole
        jobs = await self._database.look(operations_load.whole if whole else operations_load.unsettled)
        if whole:
            self._next_whole = clock + self._pace.left_over
        limits = await self._database.look(operations_load.limits)
        now = utcnow()
        calm = [job for job in jobs if job.phase is not Phase.QUEUED or self._calm(job.id, clock)]
        places = self._places if self._places is not None else len(jobs)
        turn = may_start(calm, places, now, limits)
        await self._hold(steps, turn)
        begun = await self._begin(steps, [job for job in turn.start if job.id not in self._working])
        for job in jobs if every else [job for job in jobs if job.id in woken or job.id in begun]:
            if job.id not in self._working and self._calm(job.id, clock):
                self._work(job.id, self._advance(steps, job, begun.get(job.id)))
        if whole:
            known = {job.id for job in jobs}
            self._troubles = {job: trouble for job, trouble in self._troubles.items() if job in known}

    async def _turn_to(self, steps: Steps, woken: set[str], clock: float) -> None:
        """Looks at those that somebody woke and at no others: where places are not counted, each may start at once."""
        free = [id for id in woken if id not in self._working]
        self._again |= woken.difference(free)
        if not free:
            return
        jobs = await self._database.look(partial(operations_load.some, ids=free))
        jobs = [job for job in jobs if job.phase is not Phase.QUEUED or self._calm(job.id, clock)]
        limits = await self._database.look(operations_load.limits)
        if any(job.phase is Phase.QUEUED and job.project_id in limits for job in jobs):
            # Their turn is after others that wait, and depends on those that run: all are looked at.
            self._next_look = 0.0
        begun = await self._begin(
            steps, may_start([job for job in jobs if job.project_id not in limits], len(jobs), utcnow()).start
        )
        for job in jobs:
            self._work(job.id, self._advance(steps, job, begun.get(job.id)))

    async def _hold(self, steps: Steps, turn: Turn) -> None:
        """Has be told what jobs wait for that a quota holds back."""
        for job, said in turn.held:
            if job.id in self._working:
                continue
            try:
                await steps.hold(job, said)
            except Stale:
                pass  # its owner was quicker
            except (SQLAlchemyError, OSError) as error:
                self._trouble(job.id, error)

    async def _begin(self, steps: Steps, jobs: list[Job]) -> dict[str, Job]:
        try:
            return await steps.begin(jobs, utcnow())
        except (SQLAlchemyError, OSError) as error:
            for job in jobs:
                self._trouble(job.id, error)
            return {}

    async def _advance(self, steps: Steps, job: Job, begun: Job | None) -> None:
        """Takes a job as far as it goes; `begun` is what it became by an attempt that was just recorded."""
        async with self._slots:
            try:
                # Most jobs want nothing in most turns: that costs no transaction.
                if begun is not None or not await steps.idle(job):
                    await steps.advance(job.id, begun)
                self._troubles.pop(job.id, None)
            except NotLeader:
                self._lost.set()
            except (ClusterError, TimeoutError, SQLAlchemyError, OSError) as error:
                self._trouble(job.id, error)
            except Exception as error:  # one job's trouble never stops the others
                log.exception("the operator failed with %s", job.id)
                self._trouble(job.id, error)

    async def _sweep(self, steps: Steps) -> None:
        try:
            # A stray that was told to stop is looked at again soon, until it is gone.
            while await steps.sweep():  # noqa: ASYNC110 (nobody tells when a process is gone)
                await asyncio.sleep(self._pace.poll)
        except NotLeader:
            self._lost.set()
        except (ClusterError, TimeoutError, SQLAlchemyError, OSError) as error:
            log.warning("the sweep for strays failed, and is done again: %s", error)

    def _work(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=name or "sweep")
        self._working[name] = task
        task.add_done_callback(lambda _: self._done(name))

    def _done(self, name: str) -> None:
        self._working.pop(name, None)
        if name in self._again:
            self._again.discard(name)
            self._wakeups.hint(name)

    def _calm(self, job_id: str, clock: float) -> bool:
        trouble = self._troubles.get(job_id)
        return trouble is None or trouble.until <= clock

    def _trouble(self, job_id: str, error: Exception) -> None:
        before = self._troubles.get(job_id)
        times = before.times + 1 if before else 1
        wait = min(self._pace.trouble, 0.5 * 2.0**times)
        self._troubles[job_id] = _Trouble(times, time.monotonic() + wait)
        log.warning("%s is tried again in %g s: %s: %s", job_id, wait, type(error).__name__, error)

    async def _rest(self, stop: asyncio.Event) -> None:
        await _first(self._pace.least, stop.wait(), self._lost.wait())
        if stop.is_set() or self._lost.is_set():
            return
        left = min(self._pace.poll, max(0.0, self._next_look - time.monotonic()))
        await _first(left, stop.wait(), self._lost.wait(), self._hear())

    async def _hear(self) -> None:
        for job_id in await self._wakeups.wait(self._pace.poll):
            self._woken.add(job_id)
            # Its owner did something about it: no more waiting.
            self._troubles.pop(job_id, None)

    async def _listen(self) -> None:
        try:
            await self._wakeups.listen()
        except Exception as error:  # the poll does without
            log.warning("wake-ups of other processes are not heard: %s", error)

    def _turned(self) -> None:
        self._up_since()
        self.alive = time.monotonic()

    def _up_since(self) -> datetime:
        return self._awake.since(time.monotonic(), utcnow())


def _hint(loop: asyncio.AbstractEventLoop, wakeups: Wakeups, name: str) -> None:
    """Wakes the operator about the job of an attempt, from any thread."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
        loop.call_soon_threadsafe(wakeups.hint, name.rpartition("-a")[0])


async def _first(seconds: float, *waits: Awaitable[object]) -> None:
    """Returns when the first of `waits` is done, or after `seconds`; the others are dropped."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
