"""What an attempt that is over leaves behind: logs are kept, unsent reports are taken in, outputs are checked."""

import asyncio
import logging
import shutil
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy.exc import StatementError

from api.domain.decide import Collected, Note
from api.domain.job import Attempt, Job
from api.domain.observation import Observation
from api.folder import Store
from api.operator.cluster import Cluster, LogEnd
from api.operator.folder import write
from api.store import operations_checkpoints, reports
from api.store.database import Database, never_stored
from api.store.operations_leader import Lease, require
from worker.contract import manifest
from worker.contract.manifest import Damaged
from worker.contract.protocol import Checkpoint, Output, Report

log = logging.getLogger(__name__)


async def collect(
    job: Job, seen: Observation, *, database: Database, lease: Lease, cluster: Cluster, store: Path
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
        await asyncio.to_thread(_keep_logs, Store(store), job.id, attempt.number, logs)
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
        spoilt = await asyncio.to_thread(check_outputs, store, job.id, attempt.number, words.outputs)
    return Collected(spoilt, tuple(notes))


def check_outputs(store: Path, job_id: str, attempt: int, outputs: list[Output]) -> str | None:
    """What is wrong with an attempt's outputs; None: each lies in the attempt's own folder, whole, with its hash."""
    own = store / "jobs" / job_id / f"a{attempt}" / "outputs"
    for output in outputs:
        folder = store / output.path
        if not folder.resolve().is_relative_to(own.resolve()) or folder.resolve() == own.resolve():
            return f"output {output.path} does not lie in the attempt's own folder"
        try:
            found = manifest.verify(folder)
        except Damaged as error:
            return f"output {output.path} is not whole: {error}"
        if found.sha256 != output.sha256:
            return f"output {output.path} does not have the hash that the worker named"
    return None


def spool_folder(store: Path, job_id: str, attempt: int) -> Path:
    """Where a worker keeps the reports that nobody has answered yet: one file a report."""
    return store / "jobs" / job_id / f"a{attempt}" / "spool"


async def _take_in(
    job: Job, attempt: Attempt, seen: Observation, *, database: Database, lease: Lease, store: Path
) -> list[Note]:
    """Feeds the spool's reports to where live ones go. The files stay until the outcome is stored, so that a second
    try counts the same; their `seq` keeps them from counting twice.
    """
    folder = spool_folder(store, job.id, attempt.number)
    paths = sorted(await asyncio.to_thread(lambda: list(folder.glob("*.json"))))
    damaged, refused = 0, 0
    for path in paths:
        try:
            report = Report.model_validate_json(await asyncio.to_thread(path.read_bytes))
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


async def _record_checkpoints(job: Job, attempt: Attempt, *, database: Database, lease: Lease, store: Path) -> None:
    """Records the whole checkpoints that the worker was killed too early to tell of."""
    async with database.reading() as session:
        known = await operations_checkpoints.recorded(session, job.id, attempt.number)
    found = await asyncio.to_thread(_untold, store, job.id, attempt.number, known)
    if found:
        async with database.transaction() as session:
            await operations_checkpoints.record(session, lease, job.id, attempt.number, found)


def _untold(store: Path, job_id: str, attempt: int, known: set[str]) -> list[Checkpoint]:
    found = []
    for path in (store / "jobs" / job_id / f"a{attempt}" / "checkpoints").glob("step-*"):
        step, _, part = path.name.removeprefix("step-").partition(".")
        where = path.relative_to(store).as_posix()
        if not (step.isdecimal() and (part or "0").isdecimal()) or where in known:
            continue
        try:
            whole = manifest.verify(path)
        except (Damaged, OSError) as error:
            log.warning("a checkpoint that nobody told of is not whole: %s", error)
            continue
        saved_at = datetime.fromtimestamp((path / manifest.MANIFEST).stat().st_mtime, UTC)
        found.append(
            Checkpoint(
                step=int(step),
                part=int(part or 0),
                path=where,
                bytes=whole.total_bytes,
                sha256=whole.sha256,
                at=saved_at,
            )
        )
    return found


def _keep_logs(store: Store, job: str, attempt: int, logs: dict[int, LogEnd]) -> None:
    for rank, end in logs.items():
        path = store.kept_log(job, attempt, rank, end.start)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, end.content)


def remove_folder(path: Path) -> None:
    """Removes a folder: out of sight in one step, then file by file. Nothing happens if it is not there."""
    gone = path.with_name(f".tmp-removed-{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
    try:
        path.replace(gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone)


def remove_unfinished(folder: Path) -> None:
    """Removes what writes that were cut short left in an attempt's folder. Only once the attempt is dead."""
    for path in list(folder.rglob(".tmp-*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_job(store: Path, job_id: str, kept: list[str]) -> None:
    """Removes all that a job stored but the folders `kept` (paths in the store), which models lie in."""
    keep = {(store / path).resolve() for path in kept}
    folder = (store / "jobs" / job_id).resolve()
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _remove_but(folder, keep)
    shutil.rmtree(store / "logs" / job_id, ignore_errors=True)


def _remove_but(folder: Path, keep: set[Path]) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            if any(kept.is_relative_to(path) for kept in keep):
                _remove_but(path, keep)
            else:
                shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
