"""The cluster of one machine: an attempt is a process group, found again after a restart of the control plane."""

import asyncio
import errno
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

import worker
from api.domain.job import Reason
from api.domain.observation import Observation
from api.operator.cluster import CannotStart, ClusterError, LogEnd, placed
from api.operator.environment import environment
from api.operator.folder import Folder, write
from worker.contract.order import Input, Order
from worker.contract.spec import JobSpec
from worker.storage.place import is_object_store

_NAME = re.compile(r"^[a-z][a-z0-9-]{0,49}-a[1-9][0-9]{0,6}$")
_FULL = (errno.ENOSPC, errno.EDQUOT)
# A launcher that dies before it writes its pid has touched nothing, and is started again; not for ever.
_SPAWNS = 5
LAUNCHER = (sys.executable, "-m", "worker")
P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


class LocalCluster:
    """Runs attempts as processes of this machine, each in a folder `<data>/attempts/<name>`.

    `command` starts a launcher (`--order FILE` is added).
    """

    def __init__(self, data: Path, store_url: str, url_file: Path, *, command: Sequence[str] = LAUNCHER) -> None:
        self._attempts = data / "attempts"
        self._store_url = store_url
        self._in_bucket = is_object_store(store_url)
        # Of a folder, the path: what a worker opens.
        self._store_seen = store_url if self._in_bucket else unquote(urlsplit(store_url).path)
        self._url_file = url_file
        self._command = tuple(command)
        self._ended: Callable[[str], None] = lambda name: None
        # Every attempt is looked at every second. Several threads would each have to be waited for by those who answer
        # requests: Python runs one at a time.
        self._observer = ThreadPoolExecutor(1, "observer")

    def watch(self, ended: Callable[[str], None]) -> None:
        """Has `ended` called, in another thread, with the name of an attempt whose launcher has ended."""
        self._ended = ended

    @property
    def trouble(self) -> str | None:
        """None: what happens on this machine is seen."""
        return None

    async def look_anew(self) -> None:
        """Nothing to do: files are looked at each time."""

    def order(self, name: str, job: str, attempt: int, spec: JobSpec, inputs: Mapping[str, Input]) -> Order:
        """The attempt's order, with its files in the attempt's folder."""
        folder = self._folder(name)
        return Order(
            job=job,
            attempt=attempt,
            spec=spec,
            inputs=placed(inputs, self._store_seen),
            store=self._store_url,
            scratch=str(folder.path / "scratch") if self._in_bucket else None,
            control_url_file=str(self._url_file),
            token_file=str(folder.token),
            termination_file=str(folder.exit),
            log_folder=str(folder.log),
        )

    async def ensure(self, name: str, order: Order, token: str, image: str | None = None, project: str = "") -> str:
        """Starts the attempt's launcher, unless it was started before. Raises CannotStart, ClusterError."""
        return await _in_thread(self._ensure, self._folder(name), order, token)

    async def observe(self, name: str, uid: str | None = None) -> Observation:
        """What the attempt's files prove."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._observer, self._folder(name).observe)
        except OSError as error:
            raise ClusterError(f"{type(error).__name__}: {error}") from error

    async def stop(self, name: str, grace: float) -> None:
        """SIGTERM to the launcher, SIGKILL to all after `grace` seconds; call it until the attempt is dead."""
        await _in_thread(self._folder(name).stop, grace)

    async def logs(self, name: str) -> dict[int, LogEnd]:
        """The last 1 MiB of each rank's log, by rank."""
        return await _in_thread(self._folder(name).logs)

    async def remove(self, name: str, force: bool = False) -> bool:
        """Removes the folder of an attempt that is over. Raises ClusterError if it still lives."""
        if not await _in_thread(self._folder(name).remove):
            raise ClusterError(f"{name} still lives")
        return True

    async def names(self) -> set[str]:
        """The names of all attempts that have a folder."""
        return await _in_thread(self._names)

    def _folder(self, name: str) -> Folder:
        if not _NAME.match(name):
            raise ValueError(f"{name!r} is no attempt's name")
        return Folder(self._attempts / name)

    def _names(self) -> set[str]:
        if not self._attempts.exists():
            return set()
        for left in self._attempts.glob(".removed-*"):
            shutil.rmtree(left, ignore_errors=True)
        return {path.name for path in self._attempts.iterdir() if path.is_dir() and _NAME.match(path.name)}

    def _ensure(self, folder: Folder, order: Order, token: str) -> str:
        try:
            folder.log.mkdir(parents=True, exist_ok=True)
            with folder.locked() as lock:
                before = folder.order()
                if before is not None and (before.job, before.attempt, before.spec) != (
                    order.job,
                    order.attempt,
                    order.spec,
                ):
                    raise CannotStart(
                        Reason.NAME_CONFLICT, f"{folder.path} is another attempt's; move it away, then retry"
                    )
                if lock is None or folder.pid() is not None or folder.exit.exists():
                    # It lives, or did: whatever became of it, it is not started twice.
                    return folder.uid()
                write(folder.spec, order.model_dump_json(indent=1).encode())
                write(folder.token, token.encode(), 0o600)
                folder.asked.touch()
                os.utime(folder.asked, (0, 0))
                self._count(folder)
                self._spawn(folder, lock)
            return folder.uid()
        except OSError as error:
            if error.errno in _FULL:
                raise CannotStart(
                    Reason.STORE_FULL, f"the disk of {self._attempts} is full: free some space, then retry the job"
                ) from error
            raise

    def _count(self, folder: Folder) -> None:
        """Counts the launchers that were started here; raises CannotStart when too many died at once."""
        path = folder.path / "spawns"
        spawns = int(path.read_text()) if path.exists() else 0
        if spawns >= _SPAWNS:
            said = f"the launcher died {spawns} times before it began: {folder.last_words()}"
            raise CannotStart(Reason.WORKER_ERROR, said)
        write(path, str(spawns + 1).encode())

    def _spawn(self, folder: Folder, lock: int) -> None:
        source = Path(worker.__file__).parent.parent
        # Appended to by every process of the attempt, also after we are gone: a file and no pipe.
        with folder.launcher_log.open("ab") as output:
            process = subprocess.Popen(
                [*self._command, "--order", str(folder.spec)],
                cwd=folder.path,
                env=environment(lock, os.environ, source, for_bucket=self._in_bucket),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
                start_new_session=True,
            )
        name = folder.path.name
        write(folder.launched, str(process.pid).encode())
        threading.Thread(target=self._reap, args=(process, name), name=f"reap {name}", daemon=True).start()

    def _reap(self, process: "subprocess.Popen[bytes]", name: str) -> None:
        """Waits for a launcher, so that none is left as a zombie."""
        code = process.wait()
        log.info("the launcher of %s ended with %s", name, code)
        self._ended(name)


async def _in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return await asyncio.to_thread(call, *args, **kwargs)
    except OSError as error:
        raise ClusterError(f"{type(error).__name__}: {error}") from error
