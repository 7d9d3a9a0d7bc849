"""Real attempts: a launcher with its ranks, started as the local cluster starts them."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tests.process.listener import TOKEN
from worker.contract.check import parse_spec
from worker.contract.order import Order
from worker.contract.protocol import Termination

DEADLINE = 60.0
T = TypeVar("T")
JOB = "job-aaaaaaaaaaaa"


def until(condition: Callable[[], T], deadline: float = DEADLINE, what: str = "") -> T:
    """The condition's value once it is true; fails after `deadline` seconds."""
    ends = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < ends, f"not within {deadline} s: {what or condition}"
        time.sleep(0.005)
    return value


class Attempt:
    """One attempt at a rehearsal. `stage`, `spec` and `attempt` say which."""

    def __init__(self, home: Path, attempt: int = 1, stage: dict[str, Any] | None = None, **spec: Any):
        self.home = home
        self.store = home / "store"
        self.folder = home / "attempts" / f"{JOB}-a{attempt}"
        self.folder.mkdir(parents=True)
        self.store.mkdir(exist_ok=True)
        (self.folder / "token").write_text(f"{TOKEN}{attempt}")
        self.order = Order(
            job=JOB,
            attempt=attempt,
            spec=parse_spec({"stage": {"type": "rehearse", "seconds_per_step": 0.01, **(stage or {})}, **spec}),
            inputs={},
            store=self.store.as_uri(),
            control_url_file=str(home / "worker-url"),
            token_file=str(self.folder / "token"),
            termination_file=str(self.folder / "exit.json"),
            log_folder=str(self.folder / "log"),
        )
        (self.folder / "spec.json").write_text(self.order.model_dump_json())
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def own(self) -> Path:
        """The attempt's folder in the store."""
        return self.store / self.order.folder

    @property
    def spool(self) -> list[Path]:
        return sorted(self.own.glob("spool/*.json"))

    def start(self) -> "Attempt":
        """Starts the launcher, which inherits the lock."""
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with (self.folder / "launcher.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker", "--order", str(self.folder / "spec.json")],
                env=os.environ | {"WORKER_LOCK_FD": str(lock)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock],
                start_new_session=True,
            )
        os.close(lock)
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def ranks(self) -> list[psutil.Process]:
        """The rank processes that live, by rank."""
        try:
            children = psutil.Process(self.pid).children()
            by_rank = {int(child.environ()["RANK"]): child for child in children if "worker.run" in child.cmdline()}
        except (psutil.Error, KeyError):
            return []
        return [by_rank[rank] for rank in sorted(by_rank)]

    def wait(self) -> int:
        """The launcher's exit code."""
        assert self.process is not None
        return self.process.wait(DEADLINE)

    def alive(self) -> bool:
        """Whether any process of the attempt holds the lock."""
        lock = os.open(self.folder / "lock", os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def termination(self) -> Termination:
        return Termination.model_validate_json((self.folder / "exit.json").read_bytes())

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill_group(self) -> None:
        """Ends everything that is left of the attempt."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def log(self, rank: int = 0) -> str:
        return (self.folder / "log" / f"rank-{rank}.log").read_text()

    def state_of(self, step: int, rank: int = 0) -> dict[str, Any]:
        """What a rank's state in a checkpoint says."""
        path = self.own / "checkpoints" / f"step-{step:09d}" / f"rank-{rank}.json"
        state: dict[str, Any] = json.loads(path.read_text())
        return state
