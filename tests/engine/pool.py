"""Ranks that live as long as the tests: real processes with real DeepSpeed over gloo, which run one case after another.

Each import of DeepSpeed takes seconds; a case takes a tenth of one.
"""

import faulthandler
import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any


class Pool:
    """`world` ranks that have met."""

    def __init__(self, world: int, folder: Path):
        self._world, self._folder = world, folder
        self._starts = 0
        self._start()

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        self._starts += 1
        meeting = str(self._folder / f"rendezvous-{self._starts}")
        for rank in range(self._world):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(rank, self._world, meeting, theirs), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)
        for end in self._ends:
            if not end.poll(300):
                raise TimeoutError("a rank did not come up within 300 s")
            end.recv()

    def run(self, case: Callable[..., Any], *arguments: Any, timeout: float = 240) -> list[Any]:
        """What `case(rank, world, *arguments)` gives on each rank. Raises what a rank raised.

        Ranks that give no answer within `timeout` seconds (of which each prints where it is) are replaced.
        """
        for end in self._ends:
            end.send((case, arguments, timeout))
        results, errors = [], []
        for end in self._ends:
            # One rank's error leaves the other waiting for it.
            answered = end.poll(5 if any(errors) else timeout)
            result, error = end.recv() if answered else (None, "no answer")
            results.append(result)
            errors.append(error)
        if "no answer" in errors:
            for process in self._processes:
                process.kill()
            self._start()
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
    # The slow part, once.
    import worker.outputs
    import worker.stages.sft  # noqa: F401

    pipe.send("ready")
    while True:
        try:
            case, arguments, timeout = pipe.recv()
            faulthandler.dump_traceback_later(timeout - 2)
        except EOFError:
            os._exit(0)
        try:
            result = case(rank, world, *arguments)
            faulthandler.cancel_dump_traceback_later()
            pipe.send((result, None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
