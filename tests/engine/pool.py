"""Ranks that live as long as the tests: real processes with real DeepSpeed over gloo, which run one case after another.

Each import of DeepSpeed takes seconds; a case takes a tenth of one.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class Pool:
    """`world` ranks that have met."""

    def __init__(self, world: int, folder: Path):
        spawn = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        for rank in range(world):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(rank, world, str(folder / "rendezvous"), theirs), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def run(self, case: Callable[..., Any], *arguments: Any, timeout: float = 120) -> list[Any]:
        """What `case(rank, world, *arguments)` gives on each rank. Raises what a rank raised."""
        for end in self._ends:
            end.send((case, arguments))
        results, errors = [], []
        for rank, end in enumerate(self._ends):
            if not end.poll(timeout):
                raise TimeoutError(f"rank {rank} gave no answer within {timeout} s")
            result, error = end.recv()
            results.append(result)
            errors.append(error)
        if any(errors):
            raise AssertionError("\n".join(f"rank {rank}: {error}" for rank, error in enumerate(errors) if error))
        return results

    def close(self) -> None:
        """Ends the ranks."""
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()


def _serve(rank: int, world: int, rendezvous: str, pipe: Connection) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "WORKER_RENDEZVOUS": f"file://{rendezvous}",
    }
    while True:
        try:
            case, arguments = pipe.recv()
        except EOFError:
            os._exit(0)
        try:
            pipe.send((case(rank, world, *arguments), None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
