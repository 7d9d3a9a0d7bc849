"""Folders that are whole or not there: checkpoints and outputs are sealed with their hashes, and found.

A folder is written under a temporary name, hashed into its manifest, flushed, renamed, and its parent flushed. So a
crash at any moment leaves either the whole folder or a temporary one that nobody reads, and that the operator
removes once the attempt is dead.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from worker.contract import manifest
from worker.contract.manifest import Damaged, Manifest
from worker.contract.protocol import Checkpoint

TEMPORARY = ".tmp-"
_STEP = "step-"


@dataclass(frozen=True)
class Found:
    """A whole checkpoint: every file has the hash that its manifest says."""

    step: int
    part: int
    attempt: int
    path: Path
    manifest: Manifest


def step_folder(checkpoints: Path, step: int, part: int = 0) -> Path:
    """The final folder of a step's checkpoint; `part`: of one that was made within the step that follows."""
    return checkpoints / (f"{_STEP}{step:09d}" + (f".{part:06d}" if part else ""))


def temporary_for(final: Path) -> Path:
    """A fresh, empty temporary folder beside `final`, to be filled and sealed. Every rank knows its name."""
    temporary = temporary_name(final)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def temporary_name(final: Path) -> Path:
    """The name under which `final` is written until it is sealed."""
    return final.with_name(f"{TEMPORARY}{final.name}")


def seal(temporary: Path, final: Path) -> Manifest:
    """Makes a filled temporary folder the final one, whole, and gives its manifest.

    A final folder that is there already and whole is kept, and the temporary one removed: the same attempt at the same
    step has nothing new to say. Raises OSError, with nothing changed but the temporary folder.
    """
    if final.exists():
        try:
            kept = manifest.verify(final)
        except Damaged:
            shutil.rmtree(final)
        else:
            shutil.rmtree(temporary)
            return kept
    described = manifest.describe(temporary)
    (temporary / manifest.MANIFEST).write_bytes(described.encode())
    for path in temporary.rglob("*"):
        _flush(path)
    _flush(temporary)
    temporary.rename(final)
    _flush(final.parent)
    return described


def announce(final: Path, sealed: Manifest, *, step: int, part: int = 0, store: Path) -> Checkpoint:
    """The message that tells of a sealed checkpoint."""
    return Checkpoint(
        step=step,
        part=part,
        path=final.relative_to(store).as_posix(),
        bytes=sealed.total_bytes,
        sha256=sealed.sha256,
        at=datetime.now(UTC),
    )


def newest_whole(job_folder: Path) -> tuple[Found | None, list[str]]:
    """The newest whole checkpoint of a job, and a sentence on each newer one that is damaged.

    Looks at all attempts' folders, also of this number and later ones: a control plane that was restored from a back-up
    gives numbers again. The highest step and part first, of two with the same the later attempt's. Hashes are verified:
    one that is cut short or has a bit flipped is passed over.
    """
    damaged: list[str] = []
    folders = [str(path) for path in job_folder.glob(f"a*/checkpoints/{_STEP}*") if path.is_dir()]
    for step, part, attempt, folder in sorted(candidates(folders), reverse=True):
        path = Path(folder)
        try:
            return Found(step, part, attempt, path, manifest.verify(path)), damaged
        except (Damaged, OSError) as error:
            damaged.append(f"the checkpoint of step {step} (attempt {attempt}) is passed over: {error}")
    return None, damaged


def candidates(paths: Iterable[str]) -> list[tuple[int, int, int, str]]:
    """Those of the folders that are named as checkpoints of a job are: (step, part, attempt, folder)."""
    found = []
    for path in paths:
        parts = path.split("/")
        if len(parts) < 3 or parts[-2] != "checkpoints" or not parts[-1].startswith(_STEP):
            continue
        attempt, (step, _, part) = parts[-3].removeprefix("a"), parts[-1].removeprefix(_STEP).partition(".")
        if attempt.isdecimal() and step.isdecimal() and (part or "0").isdecimal():
            found.append((int(step), int(part or 0), int(attempt), path))
    return found


def _flush(path: Path) -> None:
    """Brings a file's or folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
