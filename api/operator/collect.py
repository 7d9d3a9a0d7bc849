"""What an attempt that is over leaves behind: logs are kept, unsent reports are taken in, outputs are checked."""

import contextlib
import logging

from pydantic import ValidationError
from sqlalchemy.exc import StatementError

from api.domain.decide import Collected, Note
from api.domain.job import Attempt, Job
from api.domain.observation import Observation
from api.logs import NAME as LOG_NAME
from api.operator.cluster import Cluster, LogEnd
from api.operator.folder import LOG_TAIL
from api.store import operations_checkpoints, reports
from api.store.database import Database, never_stored
from api.store.operations_leader import Lease, require
from api.stores import Store, attempt_folder, kept_log, spool_folder
from worker.contract import manifest
from worker.contract.manifest import Damaged
from worker.contract.protocol import Checkpoint, Output, Report
from worker.storage.failures import Away, Refused, StorageFailure

log = logging.getLogger(__name__)


async def collect(
    job: Job, seen: Observation, *, database: Database, lease: Lease, cluster: Cluster, store: Store
) -> Collected:
    """Keeps the logs, takes in the left-over reports, checks the outputs. May be repeated, with the same result.

    Raises ClusterError, NotLeader, OSError.
    """
    attempt = job.attempt
    if attempt is None:
        raise ValueError(f"{job.id} has no attempt")
    notes = []
    try:
        logs = await cluster.logs(attempt.object_name)
        await store.run(_keep_logs, store, job.id, attempt.number, logs)
    except (Away, Refused):
        raise  # no answer proves nothing: it is all asked for again
    except OSError as error:
        # A full disk, perhaps: the outcome is worth more than the log.
        notes.append(Note("LogsLost", f"its logs could not be kept: {error.strerror}"))
    notes += await _take_in(job, attempt, seen, database=database, lease=lease, store=store)
    await _record_checkpoints(job, attempt, database=database, lease=lease, store=store)
    words = seen.termination or attempt.termination
    if seen.exit_code != 0:
        spoilt = None
    elif words is None:
        spoilt = "it exited with 0, and its last words are lost: what it made is not known"
    else:
        spoilt = await store.run(check_outputs, store, job.id, attempt.number, words.outputs)
    return Collected(spoilt, tuple(notes))


def check_outputs(store: Store, job_id: str, attempt: int, outputs: list[Output]) -> str | None:
    """What is wrong with an attempt's outputs; None: each lies in the attempt's own folder, whole, with its hash."""
    own = f"{attempt_folder(job_id, attempt)}/outputs"
    for output in outputs:
        if not store.lies_in(output.path, own):
            return f"output {output.path} does not lie in the attempt's own folder"
        try:
            found = store.verify(output.path)
        except Damaged as error:
            return f"output {output.path} is not whole: {error}"
        if found.sha256 != output.sha256:
            return f"output {output.path} does not have the hash that the worker named"
    return None


async def _take_in(
    job: Job, attempt: Attempt, seen: Observation, *, database: Database, lease: Lease, store: Store
) -> list[Note]:
    """Feeds the spool's reports to where live ones go. The files stay until the outcome is stored, so that a second
    try counts the same; their `seq` keeps them from counting twice.
    """
    folder = spool_folder(job.id, attempt.number)
    paths = [f"{folder}/{name}" for name in await store.run(store.names, folder) if name.endswith(".json")]
    damaged, refused = 0, 0
    for path in paths:
        try:
            report = Report.model_validate_json(await store.run(store.read, path))
        except StorageFailure:
            raise
        except (ValidationError, OSError):
            damaged += 1
            continue
        try:
            async with database.transaction() as session:
                await require(session, lease)
                await reports.accept(session, job.id, attempt.number, report, late=True)
        except (reports.AttemptOver, reports.JobGone, reports.Misplaced) as error:
            log.warning("a left-over report of %s was refused: %s", attempt.object_name, error)
            refused += 1
        except (StatementError, OverflowError) as error:
            if not never_stored(error):
                raise
            log.warning("a left-over report of %s cannot be stored: %s", attempt.object_name, error)
            refused += 1
    words = seen.termination or attempt.termination
    lost = max(0, (words.undelivered if words else 0) - len(paths))
    return [
        Note("ReportsLost", f"{count} of its reports {what}")
        for count, what in (
            (damaged, "could not be read from the spool, and are lost"),
            (refused, "were refused, and are lost"),
            (lost, "were never delivered and are not in the spool: they are lost"),
        )
        if count
    ]


async def _record_checkpoints(job: Job, attempt: Attempt, *, database: Database, lease: Lease, store: Store) -> None:
    """Records the whole checkpoints that the worker was killed too early to tell of."""
    async with database.reading() as session:
        known = await operations_checkpoints.recorded(session, job.id, attempt.number)
    found = await store.run(_untold, store, job.id, attempt.number, known)
    if found:
        async with database.transaction() as session:
            await operations_checkpoints.record(session, lease, job.id, attempt.number, found)


def _untold(store: Store, job_id: str, attempt: int, known: set[str]) -> list[Checkpoint]:
    found = []
    folder = f"{attempt_folder(job_id, attempt)}/checkpoints"
    for name in store.names(folder):
        step, _, part = name.removeprefix("step-").partition(".")
        where = f"{folder}/{name}"
        if not (name.startswith("step-") and step.isdecimal() and (part or "0").isdecimal()) or where in known:
            continue
        try:
            whole = store.verify(where)
        except StorageFailure:
            raise
        except (Damaged, OSError) as error:
            log.warning("a checkpoint that nobody told of is not whole: %s", error)
            continue
        if (sealed := store.stat(f"{where}/{manifest.MANIFEST}")) is None:
            continue
        found.append(
            Checkpoint(
                step=int(step),
                part=int(part or 0),
                path=where,
                bytes=whole.total_bytes,
                sha256=whole.sha256,
                at=sealed.at,
            )
        )
    return found


def log_ends(store: Store, folder: str) -> dict[int, LogEnd]:
    """The end of each `rank-N.log` in a folder of the store, by rank."""
    found = {}
    for name, stat in store.files(folder, "rank-").items():
        if (named := LOG_NAME.fullmatch(name)) is None:
            continue
        skipped = max(0, stat.bytes - LOG_TAIL)
        with contextlib.suppress(FileNotFoundError):
            content = store.read(f"{folder}/{name}", skipped, skipped + LOG_TAIL)
            found[int(named[1])] = LogEnd(int(named[2] or 0) + skipped, content)
    return found


def _keep_logs(store: Store, job: str, attempt: int, logs: dict[int, LogEnd]) -> None:
    for rank, end in logs.items():
        store.write(kept_log(job, attempt, rank, end.start), end.content)
