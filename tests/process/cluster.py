"""Attempts of several nodes: a launcher for each of them on this machine, which share the store and nothing else."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.process.attempts import DEADLINE, JOB
from tests.process.listener import TOKEN
from worker.contract.check import parse_spec
from worker.contract.order import Input, Order
from worker.contract.protocol import Termination

LIMIT = 4096


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder in which nobody can write, not even root, for the length of a `with`. Skips where that needs root."""
    if subprocess.run(["mount", "--bind", str(folder), str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("to mount a folder for reading alone needs root")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Node:
    """One pod: its own order file, mounted for reading alone, its scratch folder and its termination file."""

    def __init__(self, home: Path, index: int, order: dict[str, Any]):
        self.index = index
        self.folder = home / f"node-{index}"
        self.scratch = self.folder / "tmp"
        self.scratch.mkdir(parents=True)
        self.exit = self.folder / "termination-log"
        self.exit.touch()
        mounted = self.folder / "etc"
        mounted.mkdir()
        self.token = mounted / "token"
        self.token.write_text(f"{TOKEN}{order['attempt']}\n")
        self.order = Order.model_validate(
            order | {"token_file": str(self.token), "termination_file": str(self.exit), "termination_limit": LIMIT}
        )
        self.order_file = mounted / "order.json"
        self.order_file.write_text(self.order.model_dump_json())
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the launcher, as the pod's first process."""
        with (self.folder / "stdout").open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker", "--order", str(self.order_file)],
                env=os.environ | {"JOB_COMPLETION_INDEX": str(self.index), "TMPDIR": str(self.scratch)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def wait(self) -> int:
        """The launcher's exit code."""
        assert self.process is not None
        return self.process.wait(DEADLINE)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def ranks(self) -> list[psutil.Process]:
        """The rank processes that live, by rank."""
        try:
            children = psutil.Process(self.pid).children()
            by_rank = {int(child.environ()["RANK"]): child for child in children if "worker.run" in child.cmdline()}
        except (psutil.Error, KeyError):
            return []
        return [by_rank[rank] for rank in sorted(by_rank)]

    def printed(self) -> str:
        """What `kubectl logs` shows."""
        return (self.folder / "stdout").read_text()

    def termination(self) -> Termination:
        return Termination.model_validate_json(self.exit.read_bytes())

    def kill_group(self) -> None:
        """Ends everything that is left of it."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()


class SpreadAttempt:
    """One attempt on several nodes; a rehearsal, unless `stage` says another."""

    def __init__(
        self,
        home: Path,
        attempt: int = 1,
        *,
        nodes: int = 2,
        per_node: int = 1,
        stage: dict[str, Any] | None = None,
        inputs: dict[str, Input] | None = None,
        **spec: Any,
    ):
        self.store = home / "store"
        self.store.mkdir(exist_ok=True)
        resources = {"nodes": nodes, "per_node": per_node}
        rehearsal = {"type": "rehearse", "seconds_per_step": 0.01}
        whole = {"stage": stage if stage and "type" in stage else rehearsal | (stage or {}), "resources": resources}
        self.own = self.store / "jobs" / JOB / f"a{attempt}"
        self.logs = self.own / "log"
        order = {
            "job": JOB,
            "attempt": attempt,
            "spec": parse_spec(whole | spec).model_dump(),
            "inputs": inputs or {},
            "store": self.store.as_uri(),
            "control_url_file": str(home / "worker-url"),
            "log_folder": str(self.logs),
            "echo": True,
            "meeting": {"host": "127.0.0.1", "port": free_port(), "ranks_port": free_port()},
        }
        self.nodes = [Node(home / f"attempt-{attempt}", index, order) for index in range(nodes)]

    @property
    def port(self) -> int:
        """Where the launchers meet."""
        meeting = self.nodes[0].order.meeting
        assert meeting is not None
        return meeting.port

    def start(self) -> "SpreadAttempt":
        """Starts all launchers."""
        for node in self.nodes:
            node.start()
        return self

    def wait(self) -> list[int]:
        """The launchers' exit codes, by node."""
        return [node.wait() for node in self.nodes]

    def saved(self) -> list[int]:
        """The steps of the sealed checkpoints."""
        return sorted(int(path.name[5:]) for path in self.own.glob("checkpoints/step-*"))

    def in_store(self) -> list[str]:
        """All that is in the store."""
        return sorted(str(path.relative_to(self.store)) for path in self.store.rglob("*"))

    def kill_group(self) -> None:
        """Ends everything that is left of it."""
        for node in self.nodes:
            node.kill_group()


MakeSpread = Callable[..., SpreadAttempt]
