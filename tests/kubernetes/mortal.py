"""An operator that dies, or freezes, at a named step: `python -m tests.kubernetes.mortal` is `python -m api` that does.

By the variables of its environment:

- `MORTAL_STEPS`: a file, to which each kind of step is written that is reached for the first time: a line of `before`
  or `after`, what is done, and with which attempt, such as `after create jobs a1`.
- `MORTAL_DIES`: `after` or `both`. It kills itself -9 at each step that is not in the file yet, and is started again.
  `after`: after each that changes something; `both`: before and after each of all.
- `MORTAL_FREEZES`: such a line: there it stops itself, as SIGSTOP from outside would, once.

Steps are the calls to the API server and the transactions of the database, but for those that keep the lease.
"""

import contextlib
import ctypes
import functools
import inspect
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from api.__main__ import main
from api.operator.kube_api import KubeApi
from api.store import operations, operations_checkpoints, operations_leader, operations_steps
from api.store.database import Database

_READS = ("get", "list")
_PR_SET_PDEATHSIG = 1


class Steps:
    """Which steps were reached, in this life and earlier ones, and what happens at a new one."""

    def __init__(self, file: Path, dies: str, freezes: str) -> None:
        self._file, self._dies, self._freezes = file, dies, freezes
        self._reached = set(file.read_text().splitlines()) if file.exists() else set()

    def reach(self, moment: str, step: str) -> None:
        """Writes it down; does not return if this is a new step to die at."""
        line = f"{moment} {step}"
        if line in self._reached:
            return
        self._reached.add(line)
        with self._file.open("a") as file:
            file.write(f"{line}\n")
        # The state before a step is the state after the one before it, and a look changes none: whoever is short of
        # time dies only after what changes something.
        if self._dies == "both" or (self._dies == moment == "after" and step.split(maxsplit=1)[0] not in _READS):
            os.kill(os.getpid(), signal.SIGKILL)
        if line == self._freezes:
            os.kill(os.getpid(), signal.SIGSTOP)


_written: ContextVar[list[str]] = ContextVar("_written")


def mortal(steps: Steps) -> None:
    """Has every step of this process be told to `steps`."""
    for verb in ("get", "list", "create", "delete"):
        setattr(KubeApi, verb, _call(steps, verb, getattr(KubeApi, verb)))
    for module in (operations, operations_checkpoints, operations_steps):
        _name_writes(module)
    _transactions(steps)


def _call(steps: Steps, verb: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A call to the API server."""

    @functools.wraps(original)
    async def told(self: KubeApi, kind: Any, what: Any, *more: Any) -> Any:
        # `what` is a name, an object, or a list's query.
        name = what if isinstance(what, str) else str(what.get("metadata", {}).get("name", ""))
        attempt = re.search(r"-(a\d+)", name)
        step = f"{verb} {kind.plural}" + (f" {attempt[1]}" if attempt else "")
        steps.reach("before", step)
        try:
            return await original(self, kind, what, *more)
        finally:
            # Refused, too: it may be there already, and is a step all the same.
            steps.reach("after", step)

    return told


def _name_writes(module: ModuleType) -> None:
    """Has each function that writes under a lease say what it is, to the transaction that it is a part of."""
    for name, function in list(vars(module).items()):
        if inspect.isfunction(function) and "lease" in inspect.signature(function).parameters:
            setattr(module, name, _named(name, function))


def _named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def told(*given: Any, **more: Any) -> Any:
        arguments = signature.bind(*given, **more).arguments
        outcome, job = arguments.get("outcome"), arguments.get("job") or next(iter(arguments.get("jobs", ())), None)
        phase = outcome.phase if outcome is not None else arguments.get("phase")
        attempt = getattr(getattr(job, "attempt", None), "number", None)
        _written.get([]).append(" ".join(filter(None, (name, phase, attempt and f"a{attempt}"))))
        return function(*given, **more)

    return told


def _transactions(steps: Steps) -> None:
    """What dies before a transaction dies with all its work done and nothing committed: the latest moment of all."""
    transaction, put = Database.transaction, Database.put

    @contextlib.asynccontextmanager
    async def told_transaction(self: Database) -> AsyncIterator[Any]:
        caller = _caller()
        if caller.f_globals["__name__"] == operations_leader.__name__:
            async with transaction(self) as session:
                yield session
            return
        written: list[str] = []
        _written.set(written)
        async with transaction(self) as session:
            yield session
            await session.flush()
            # One that no function of the operator's named is named by who asked for it: none is passed over.
            step = (written or [caller.f_code.co_name])[0]
            steps.reach("before", step)
        steps.reach("after", step)

    async def told_put(self: Database, work: Callable[..., Any]) -> Any:
        caller = _caller().f_code.co_name
        written: list[str] = []
        _written.set(written)

        def told_work(connection: Any) -> Any:
            result = work(connection)
            steps.reach("before", (written or [caller])[0])
            return result

        result = await put(self, told_work)
        steps.reach("after", (written or [caller])[0])
        return result

    setattr(Database, "transaction", told_transaction)  # noqa: B010 (an assignment is what mypy refuses)
    setattr(Database, "put", told_put)  # noqa: B010


def _caller() -> Any:
    """The frame of the control plane's own that asked for this."""
    frame = sys._getframe(1)
    while frame.f_back is not None and not frame.f_globals["__name__"].startswith("api."):
        frame = frame.f_back
    return frame


def _again_and_again(live: Callable[[], int]) -> int:
    """Lives until one does not die by its own hand. Each is a process of its own, which begins with nothing known."""
    while True:
        pid = os.fork()
        if pid == 0:
            # Whoever kills this one means that.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            os._exit(live())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != -signal.SIGKILL:
            return status


def _live() -> int:
    dies, freezes = os.environ.get("MORTAL_DIES", ""), os.environ.get("MORTAL_FREEZES", "")
    mortal(Steps(Path(os.environ["MORTAL_STEPS"]), dies, freezes))
    return main()


if __name__ == "__main__":
    sys.exit(_again_and_again(_live) if os.environ.get("MORTAL_DIES") else _live())
