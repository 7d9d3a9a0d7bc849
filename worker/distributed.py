"""The ranks of an attempt: how they meet, and how they agree."""

import os
from datetime import timedelta
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from worker.contract.spec import JobSpec
from worker.errors import BadSpec

T = TypeVar("T")
Stop = Literal["save", "discard"]
_STOPS: tuple[Stop | None, ...] = (None, "save", "discard")
# Ranks meet within seconds of their start; a save of a large model on a slow disk holds the others for minutes.
_PATIENCE = timedelta(minutes=30)


class Ranks:
    """All ranks of the attempt, and what they say to each other on the host: never on the accelerator's stream."""

    def __init__(self, rank: int, world: int):
        """Joins the other ranks, where WORKER_RENDEZVOUS says: in a file of this machine, or at rank 0's address.

        A world of one needs no address: it meets itself in memory.
        """
        self.rank, self.world = rank, world
        backend = "nccl" if _uses_cuda() else "gloo"
        if not dist.is_initialized():
            if world == 1:
                dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
            else:
                # Without a launcher: torch's own MASTER_ADDR and MASTER_PORT.
                init = os.environ.get("WORKER_RENDEZVOUS", "env://")
                dist.init_process_group(backend, init_method=init, rank=rank, world_size=world, timeout=_PATIENCE)
        # The host's group: an agreement every micro-step must not wait for the accelerator.
        self._host: dist.ProcessGroup | None = None
        if backend != "gloo" and world > 1:
            group = dist.new_group(backend="gloo", timeout=_PATIENCE)
            assert isinstance(group, dist.ProcessGroup)
            self._host = group

    def agree_to_stop(self, stop: Stop | None) -> Stop | None:
        """What the ranks do at this micro-step: the strongest wish of any of them, the same answer on all."""
        if self.world == 1:
            return stop
        wish = torch.tensor([_STOPS.index(stop)], dtype=torch.int32)
        dist.all_reduce(wish, op=dist.ReduceOp.MAX, group=self._host)
        return _STOPS[int(wish)]

    def sum(self, values: list[float]) -> list[float]:
        """The sum of each value over all ranks, in float64; NaN and infinity spread to all."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._host)
        return total.tolist()

    def gather(self, own: list[T]) -> list[T]:
        """The values of all ranks, rank 0's first. They are pickled: only what this program made itself."""
        if self.world == 1:
            return own
        every: list[list[T]] = [[] for _ in range(self.world)]
        dist.all_gather_object(every, own, group=self._host)
        return [value for part in every for value in part]

    def same(self, value: int) -> int:
        """Rank 0's value, on all ranks."""
        if self.world == 1:
            return value
        told = torch.tensor([value], dtype=torch.int64)
        dist.broadcast(told, src=0, group=self._host)
        return int(told)

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.world > 1:
            dist.barrier(group=self._host)


def check_accelerator(spec: JobSpec) -> None:
    """Raises BadSpec where the spec asks for GPUs that are not there: to train on the processor would take days."""
    wanted = spec.resources.per_node if spec.resources.accelerator != "none" else 0
    found = torch.cuda.device_count() if wanted and _uses_cuda() else 0
    if found < wanted:
        raise BadSpec(
            f"resources.accelerator: {wanted} GPUs a node are asked for, and this machine has {found} that torch can "
            "use; write `none` to train on the processor, or a lower resources.per_node"
        )


def own_device() -> torch.device:
    """Where this rank computes, without an engine to tell it: its own GPU, or the host."""
    if not _uses_cuda():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def _uses_cuda() -> bool:
    return os.environ.get("DS_ACCELERATOR") != "cpu" and torch.cuda.is_available()
