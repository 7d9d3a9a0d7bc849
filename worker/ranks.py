"""The ranks of an attempt as a launcher sees them, and the processes of its own machine: started, spoken to, ended."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker.contract.order import Order
from worker.contract.protocol import Output
from worker.contract.spec import Resources
from worker.contract.values import quantity
from worker.logs import Logs
from worker.outcome import Failure, RankEnd
from worker.workplace import APART

_PIECE = 2**16


class Rank(ABC):
    """One rank, as a launcher sees it: what it has said of itself, and how it ended."""

    def __init__(self, number: int):
        self.number = number
        """Among all ranks of the attempt."""
        self.end: RankEnd | None = None
        self.outputs: list[Output] = []
        self._failure: Failure | None = None
        self._finished = False

    @property
    def waiting(self) -> bool:
        """Whether it has said something that waits here. What waits in a socket wakes the launcher by itself."""
        return False

    @abstractmethod
    def send(self, message: dict[str, Any]) -> None:
        """Says something to the rank. A rank that is gone hears nothing."""

    @abstractmethod
    def messages(self) -> Iterator[dict[str, Any]]:
        """What the rank has said since the last call; never waits."""

    @abstractmethod
    def ended(self) -> bool:
        """Whether it has ended; then `settle` says how."""

    @abstractmethod
    def settle(self) -> RankEnd:
        """Sets and gives `end`, once the rank has ended and all its messages are read."""

    @abstractmethod
    def kill(self) -> None:
        """Ends it now, if it lives."""

    def _note(self, message: dict[str, Any]) -> None:
        match message["kind"]:
            case "finish":
                self._finished = True
                self.outputs = [Output.model_validate(output) for output in message["outputs"]]
            case "fail":
                self._failure = Failure(message["at"], message["exit"], message["reason"], message["message"])


class LocalRank(Rank):
    """A process of this machine, and the launcher's end of its channel."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], line: socket.socket):
        super().__init__(number)
        self.line = line
        self.hung_up = False
        """Its end of the channel is closed: there is nothing more to wait for on it."""
        self._process = process
        self._received = b""
        self._killed = False

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self.line.sendall(json.dumps(message).encode() + b"\n")

    def messages(self) -> Iterator[dict[str, Any]]:
        while True:
            try:
                piece = self.line.recv(_PIECE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                piece = b""
            if not piece:
                self.hung_up = True
                return
            *lines, self._received = (self._received + piece).split(b"\n")
            for line in lines:
                message = json.loads(line)
                self._note(message)
                yield message

    def ended(self) -> bool:
        return self._process.poll() is not None

    def settle(self) -> RankEnd:
        self.end = RankEnd(
            rank=self.number,
            code=self._process.returncode,
            at=time.time(),
            failure=self._failure,
            finished=self._finished,
            killed_by_launcher=self._killed,
        )
        return self.end

    def kill(self) -> None:
        if self._process.poll() is None:
            self._killed = True
            self._process.kill()


def spawn(order: Order, order_file: Path, lock_fd: int | None, node: int, logs: Logs, scratch: Path) -> list[LocalRank]:
    """Starts the ranks of this node. Their output goes to `logs`; `scratch` is a folder of this attempt alone.

    They import what they need, and touch nothing before they are told to start.
    """
    command = [sys.executable, "-m", "worker.run", "--order", str(order_file)]
    meeting = {"WORKER_RENDEZVOUS": rendezvous(order, scratch)}
    inherited = dict(os.environ)
    if order.scratch is not None:
        # Who may into the store is the launcher's to know: ranks work in a folder.
        inherited = {name: value for name, value in inherited.items() if not name.startswith("AWS_")}
    first, here = node * order.spec.resources.per_node, order.spec.resources.per_node
    ranks = [
        _start(number, command, inherited | environment(order, number) | meeting, lock_fd, logs.output(number))
        for number in range(first, first + here)
    ]
    logs.start()
    return ranks


def _start(number: int, command: list[str], variables: dict[str, str], lock_fd: int | None, output: int) -> LocalRank:
    ours, theirs = socket.socketpair()
    inherited = [theirs.fileno()] + ([lock_fd] if lock_fd is not None else [])
    try:
        process = subprocess.Popen(
            command,
            env=variables | {"WORKER_CHANNEL_FD": str(theirs.fileno())},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=inherited,
        )
    finally:
        theirs.close()
        os.close(output)
    return LocalRank(number, process, ours)


def rendezvous(order: Order, scratch: Path) -> str:
    """Where torch's ranks meet: at rank 0's node where there are several nodes, else in a file of this machine."""
    if order.meeting is not None and order.spec.resources.nodes > 1:
        return f"tcp://{_in_url(order.meeting.host)}:{order.meeting.ranks_port}"
    # A file has no port that somebody else could take first.
    return (scratch / f"rendezvous-{os.getpid()}").absolute().as_uri()


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def environment(order: Order, number: int) -> dict[str, str]:
    """What rank `number` finds in its environment beyond the launcher's own. No secrets."""
    resources = order.spec.resources
    count = str(threads(resources, _cores()))
    variables = {
        "RANK": str(number),
        "LOCAL_RANK": str(number % resources.per_node),
        "WORLD_SIZE": str(order.spec.ranks),
        "LOCAL_WORLD_SIZE": str(resources.per_node),
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        # Threads that wait for each other sleep. On cores that others use too, to spin made a step take eight times as
        # long: a thread spins away the time that the one it waits for would need.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # On a CPU, tensors come from malloc: without these its peak is 29 % over what the tensors hold, with them 6 %.
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    if resources.accelerator == "none":
        variables |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if order.scratch is not None and resources.nodes > 1:
        variables[APART] = "1"
    # DeepSpeed asks for an address, although the ranks meet by WORKER_RENDEZVOUS.
    if resources.nodes == 1:
        return variables | {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if order.meeting is not None:
        variables |= {"MASTER_ADDR": order.meeting.host, "MASTER_PORT": str(order.meeting.ranks_port)}
    return variables


def threads(resources: Resources, available: int) -> int:
    """Threads that a rank computes with: the machine's cores divided among its ranks, at least 1."""
    # More threads than cores only wait for each other.
    wanted = quantity(resources.cpu) if resources.cpu is not None else float(available)
    return max(1, int(min(wanted, available) / resources.per_node))


def _cores() -> int:
    """Processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
