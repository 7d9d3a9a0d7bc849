"""Doing what was decided about one job. No transaction is open while the cluster is waited for."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial

from sqlalchemy.engine import Connection

from api.domain.decide import (
    Action,
    Begin,
    CleanUp,
    Collect,
    Collected,
    Ensure,
    Move,
    Prune,
    Purge,
    Resolve,
    Rules,
    Settle,
    Stop,
    Tell,
    confirmed_dead,
    decide,
    watched,
)
from api.domain.job import FINAL, Attempt, Job, Phase, Reason
from api.domain.observation import Observation
from api.operator.cluster import CannotStart, Cluster, ClusterError, Held, fence
from api.operator.collect import collect
from api.operator.handed import Unfit, handed_over
from api.operator.leader import Leader
from api.store import operations, operations_checkpoints, operations_load, operations_steps
from api.store.database import Database, utcnow
from api.store.operations_leader import Lease, NotLeader
from api.stores import Store, attempt_folder, live_logs, spool_folder
from api.tokens import Tokens
from worker.contract.references import references

# A call to the cluster that takes longer is given up; a shorter lease gives it up sooner.
_CALL = 30.0
# Actions that change nothing that is looked at next: the job is looked at again in the next turn.
_PATIENT = (Stop, Prune, Tell)
# More than any way from `queued` to its end; a job that takes more is left to the next turn.
_ACTIONS_A_TURN = 20
log = logging.getLogger(__name__)


class Patience(Exception):
    """What was asked for takes a while: the job is looked at again in the next turn."""


class Steps:
    """The operator's hands, for as long as one lease runs."""

    def __init__(
        self,
        lease: Lease,
        *,
        leader: Leader,
        database: Database,
        cluster: Cluster,
        tokens: Tokens,
        store: Store,
        rules: Rules,
        up_since: Callable[[], datetime],
        hint: Callable[[str], None],
    ) -> None:
        self._lease = lease
        self._leader = leader
        self._database = database
        self._cluster = cluster
        self._tokens = tokens
        self._store = store
        self._rules = rules
        self._up_since = up_since
        self._hint = hint

    async def begin(self, jobs: Sequence[Job], now: datetime) -> dict[str, Job]:
        """Records a new attempt of each of the jobs, which have places. Gives by their ids those that begin, as they
        are then: not those that have moved on since they were looked at."""
        wanted = [
            job for job in jobs if decide(job, None, now, up_since=now, place=True, rules=self._rules) == [Begin()]
        ]
        if not wanted:
            return {}
        return await self._database.put(partial(operations.begin_attempts, lease=self._lease, jobs=wanted, now=now))

    async def hold(self, job: Job, said: str | None) -> None:
        """Tells that a queued job waits for its project's quota; None: not any more. Raises NotLeader, Stale."""
        await self._tell(job, Tell(None, "") if said is None else Tell(Reason.QUOTA_WAIT, said))

    async def advance(self, job_id: str, known: Job | None = None) -> None:
        """Takes a job as far as it goes for now; `known` is what it is, where that was just written. Raises NotLeader,
        ClusterError, OSError and the database's errors."""
        collected: Collected | None = None
        for _ in range(_ACTIONS_A_TURN):
            job = known or await self._database.look(partial(operations_load.one, job_id=job_id))
            known = None
            if job is None:
                return
            seen = await self._observe(job)
            actions = self._decide(job, seen, collected)
            try:
                for action in actions:
                    # What was collected is of one attempt: it holds until the next action, which settles that one.
                    collected = await self._do_or_tell(job, action, seen)
            except Patience:
                return
            except operations.Stale:
                # Its owner, or its worker, was quicker: decide again.
                collected = None
                continue
            if all(isinstance(action, _PATIENT) for action in actions):
                return

    async def idle(self, job: Job) -> bool:
        """Whether there is nothing to do about the job as it was loaded."""
        return not self._decide(job, await self._observe(job))

    def _decide(self, job: Job, seen: Observation | None, collected: Collected | None = None) -> list[Action]:
        # Asked for at the last moment: the machine may have slept since the job was loaded.
        up_since = self._up_since()
        return decide(job, seen, utcnow(), up_since=up_since, collected=collected, rules=self._rules)

    async def sweep(self) -> bool:
        """Stops and removes every attempt of ours that is not a current one. Gives whether any is left."""
        # Names first: what is begun after this is current when it is looked up below.
        async with self._call():
            names = await self._cluster.names()
        async with self._database.reading() as session:
            strays = names - await operations_load.current_names(session)
        left = False
        for name in strays:
            try:
                async with self._call():
                    if (await self._cluster.observe(name)).alive:
                        log.warning("%s is not a current attempt: it is stopped", name)
                        await self._cluster.stop(name, self._rules.short_grace)
                        left = True
                    elif not await self._cluster.remove(name):
                        left = True
            except (ClusterError, TimeoutError) as error:
                log.warning("%s could not be removed: %s", name, error)
                left = True
        return left

    async def _observe(self, job: Job) -> Observation | None:
        if not watched(job) or job.attempt is None:
            return None
        try:
            async with self._call():
                seen = await self._cluster.observe(job.attempt.object_name, job.attempt.uid)
        except (ClusterError, TimeoutError) as error:
            log.warning("nobody answered for %s: %s", job.attempt.object_name, error)
            return None
        return confirmed_dead(seen) if job.attempt.confirmed_dead else seen

    async def _do_or_tell(self, job: Job, action: Action, seen: Observation | None) -> Collected | None:
        try:
            return await self._do(job, action, seen)
        except Held as error:
            if watched(job):
                await self._tell(job, Tell(error.reason, error.message))
            raise

    async def _do(self, job: Job, action: Action, seen: Observation | None) -> Collected | None:
        match action:
            case Begin():
                pass  # only `begin` does this, in turn, so that places are given once
            case Resolve():
                await self._resolve(job)
            case Ensure():
                await self._ensure(job, _attempt(job))
            case Stop():
                await self._stop(job, _attempt(job), action)
            case Move():
                # A retry of what it needs may be quicker.
                image = seen.image if seen is not None and action.phase is Phase.RUNNING else None
                await self._move(job, action, broken=action.reason is Reason.DEPENDENCY_FAILED, image=image)
            case Collect() if seen is not None:
                return await collect(
                    job, seen, database=self._database, lease=self._lease, cluster=self._cluster, store=self._store
                )
            case Settle(outcome, notes):
                async with self._database.transaction() as session:
                    await operations.settle(session, self._lease, job, outcome, utcnow(), notes=notes)
                if outcome.phase in FINAL:
                    await self._hint_beside(job)
            case Tell():
                await self._tell(job, action)
            case CleanUp():
                if not await self._clean_up(job, _attempt(job)):
                    raise Patience
            case Prune():
                await self._prune(job)
            case Purge():
                await self._purge(job)
        return None

    async def _move(self, job: Job, move: Move, *, broken: bool = False, image: str | None = None) -> None:
        """Changes the phase; `broken`: only if what the job needs will still not come. `image` is recorded with it."""

        def moved(connection: Connection) -> None:
            if broken:
                operations_steps.check_broken(connection, job)
            operations.move(
                connection,
                self._lease,
                job,
                move.phase,
                utcnow(),
                reason=move.reason,
                message=move.message,
                fresh=move.fresh,
                fault=move.fault,
            )
            if image is not None:
                operations.record_image(connection, job, image)

        await self._database.put(moved)
        if move.phase in FINAL:
            await self._hint_beside(job)

    async def _hint_beside(self, job: Job) -> None:
        """Wakes those that may have waited for the job."""
        for id in await self._database.look(partial(operations_steps.waiting_beside, job_id=job.id)):
            self._hint(id)

    async def _resolve(self, job: Job) -> None:
        try:
            inputs = await handed_over(job, self._database, self._store)
        except Unfit as error:
            await self._move(job, Move(Phase.FAILED, error.reason, error.message, fault=error.fault))
            return
        async with self._database.transaction() as session:
            await operations_steps.resolve(session, self._lease, job, inputs)
        self._hint(job.id)

    async def _ensure(self, job: Job, attempt: Attempt) -> None:
        kept = {}
        if references(job.spec):
            async with self._database.reading() as session:
                kept = await operations_load.inputs(session, job.id)
        order = self._cluster.order(attempt.object_name, job.id, attempt.number, job.spec, kept)
        token = await self._tokens.issue(job.id, attempt.number)
        # Exactly where it was means: by the same program, whatever its name stands for by now.
        image = (
            await self._database.look(partial(operations.first_image, job_id=job.id)) if attempt.number > 1 else None
        )
        project = await self._database.look(partial(operations_load.project, job_id=job.id))
        try:
            async with self._call(several=True):
                uid = await self._cluster.ensure(attempt.object_name, order, token, image, project)
        except CannotStart as error:
            await self._record_stop(job, error.reason, error.message)
            return
        async with self._database.transaction() as session:
            await operations.record_uid(session, self._lease, job, uid)

    async def _tell(self, job: Job, tell: Tell) -> None:
        if (job.reason, job.message) != (tell.reason, tell.message):
            await self._database.put(lambda connection: operations.tell(connection, self._lease, job, tell))

    async def _stop(self, job: Job, attempt: Attempt, stop: Stop) -> None:
        if stop.record:
            await self._record_stop(job, stop.reason, stop.message)
        async with self._call():
            await self._cluster.stop(attempt.object_name, stop.grace)

    async def _record_stop(self, job: Job, reason: Reason | None, message: str) -> None:
        async with self._database.transaction() as session:
            await operations.stop_attempt(session, self._lease, job, utcnow(), reason=reason, message=message)

    async def _clean_up(self, job: Job, attempt: Attempt) -> bool:
        """Removes what is left of an attempt. False: not all of it is gone yet."""
        async with self._call():
            if not await self._cluster.remove(attempt.object_name, attempt.confirmed_dead):
                return False
        store, place = self._store, (job.id, attempt.number)
        for folder in (spool_folder(*place), live_logs(*place)):
            await store.run(store.remove, folder)
        await store.run(store.remove_unfinished, attempt_folder(*place))
        async with self._database.transaction() as session:
            await operations.mark_cleaned(session, self._lease, job)
        return True

    async def _prune(self, job: Job) -> None:
        async with self._database.reading() as session:
            gone = await operations_checkpoints.prunable(session, job.id, job.spec.checkpoint.keep)
        # Removed first, then recorded: what is recorded as gone is gone. Newer ones only ever make more of them go.
        for *_, path in gone:
            self._fence()
            await self._store.run(self._store.remove, path)
        async with self._database.transaction() as session:
            await operations_checkpoints.mark_pruned(
                session, self._lease, job.id, [(attempt, step, part) for attempt, step, part, _ in gone], utcnow()
            )

    async def _purge(self, job: Job) -> None:
        async with self._database.reading() as session:
            kept = await operations_checkpoints.kept_outputs(session, job.id)
        self._fence()
        await self._store.run(self._store.remove_job, job.id, kept)
        async with self._database.transaction() as session:
            await operations_checkpoints.forget(session, self._lease, job.id)

    def _fence(self) -> float:
        """Seconds for which this operator may act. Raises NotLeader."""
        if (left := self._leader.left) <= 0:
            raise NotLeader(f"{self._lease.holder} does not lead any more")
        return left

    @asynccontextmanager
    async def _call(self, several: bool = False) -> AsyncIterator[None]:
        """A call to the cluster: not without the lease, and given up before that runs out. `several`: each of them."""
        self._fence()
        # Asked once more by whoever calls, at the last moment: this process may be frozen at any point before it.
        fence.set(self._fence)
        async with asyncio.timeout(None if several else min(_CALL, self._leader.left)):
            yield


def _attempt(job: Job) -> Attempt:
    if job.attempt is None:
        raise operations.Stale(f"{job.id} has no attempt")
    return job.attempt
