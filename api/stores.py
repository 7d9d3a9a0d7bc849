"""The store: where files, models, checkpoints and kept logs lie. One interface; a folder, or a bucket of S3."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from api.weights import Known
from worker.contract.manifest import Manifest

TEMPORARY = ".tmp-"
"""How the name of what is not finished begins."""
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stat:
    """A file's size, and when it was written."""

    bytes: int
    at: datetime


class Upload(Protocol):
    """A data file on its way into the store: whole there, or not at all. All calls block."""

    def write(self, data: bytes) -> None:
        """The next bytes. Raises OSError."""

    def end(self) -> None:
        """There are no more: all of them outlive this process from now on. Raises OSError."""

    def keep(self) -> None:
        """Puts the file in its place; call it before the commit. A row without its bytes would be a lie."""

    def settle(self) -> None:
        """Takes away what tells a sweep that there may be no row; call it after the commit."""

    def discard(self) -> None:
        """Leaves nothing behind, unless `keep` was called: then nobody but the database knows what is right."""


class Store(Protocol):
    """All paths are relative to the store, and none may lead out of it (ValueError). All calls block but `run`, which
    calls them in a thread. They raise OSError where the store does not do what it is asked."""

    @property
    def url(self) -> str:
        """As orders name it."""

    @property
    def memory(self) -> float:
        """Seconds for which what was seen of a growing file is good enough: asking again may cost."""

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls what blocks on the store in a thread, so that whatever else runs in threads need not wait for it."""

    def prepare(self) -> None:
        """Makes what it needs, and sees that it takes what is written. Raises OSError, in a sentence."""

    def close(self) -> None:
        """Ends what `run` has begun."""

    def upload(self, id: str) -> Upload:
        """Begins the data file `files/ID.jsonl`."""

    def unsettle(self, mark: str, content: str = "") -> None:
        """Leaves a mark, `FOLDER/.tmp-ID`, that what it stands for may be left over. A full disk is no hindrance."""

    def files(self, folder: str, beginning: str = "") -> dict[str, Stat]:
        """All files in a folder and in those in it, by their path in it; only those whose path begins so."""

    def names(self, folder: str) -> list[str]:
        """What lies in a folder, without what lies in folders in it, in order."""

    def stat(self, path: str) -> Stat | None:
        """A file's; None: there is none."""

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        """A file's bytes from `start` to `end`, as many as there are. Raises FileNotFoundError."""

    def chunks(self, path: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The same, in pieces that fit into memory, whatever its size."""

    def lines(self, path: str) -> Iterator[bytes]:
        """A file's lines as they come, with their ends. Raises FileNotFoundError."""

    def write(self, path: str, content: bytes) -> None:
        """Writes a small file, whole or not at all."""

    def remove(self, path: str) -> None:
        """Removes a file, or a folder and all in it, if it is there. A folder that carries a manifest is not whole any
        more from the first moment on."""

    def remove_unfinished(self, folder: str) -> None:
        """Removes what writes that were cut short left in an attempt's folder. Only once the attempt is dead."""

    def remove_parts(self, older_than: timedelta) -> None:
        """Removes what was sent of data files, and of models that workers converted, whose uploads were begun that long
        ago, and never ended."""

    def remove_job(self, job: str, kept: list[str]) -> None:
        """Removes all that a job stored but the folders `kept`, which models lie in."""

    def manifest(self, folder: str) -> Manifest:
        """The manifest of a folder. Raises Damaged."""

    def verify(self, folder: str) -> Manifest:
        """The manifest of a folder whose files are all there, with the right bytes. Raises Damaged."""

    def described(self, folder: str) -> AbstractContextManager[Path]:
        """A model's folder on this machine, for as long as the block lasts: with all that describes the model. Its
        weights need be no more than names. Raises Damaged."""

    def look(self, folder: str, *, tokenizer_only: bool = False) -> Known:
        """What a model is by its files, as they are now. Raises NotAModel, Damaged."""

    def place(self, path: str) -> str:
        """Where people find it: a path or a URL."""

    def lies_in(self, path: str, folder: str) -> bool:
        """Whether `path` lies in a folder and is not that folder, links followed."""


def sentence(failure: OSError) -> str:
    """What a store said, without the number that stands before it."""
    return failure.strerror or str(failure)


def kept_logs(job: str, attempt: int) -> str:
    """The folder of the logs of an attempt that is over."""
    return f"logs/{job}/a{attempt}"


def kept_log(job: str, attempt: int, rank: int, start: int) -> str:
    """Where the operator keeps a rank's log; of a long one only what it said from byte `start` on."""
    begins = f".from-{start}" if start else ""
    return f"{kept_logs(job, attempt)}/rank-{rank}{begins}.log"


def attempt_folder(job: str, attempt: int) -> str:
    """The only folder that an attempt writes."""
    return f"jobs/{job}/a{attempt}"


def live_logs(job: str, attempt: int) -> str:
    """Where the ranks of an attempt on a cluster write their logs."""
    return f"{attempt_folder(job, attempt)}/log"


def spool_folder(job: str, attempt: int) -> str:
    """Where a worker keeps the reports that nobody has answered yet: one file a report."""
    return f"{attempt_folder(job, attempt)}/spool"
