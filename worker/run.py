"""One rank: `python -m worker.run --order FILE`, started by the launcher. Runs its stage and says how it ended."""

import argparse
import contextlib
import ctypes
import gc
import importlib
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from worker import ahead
from worker.channel import Channel
from worker.context import Context
from worker.contract.order import Order
from worker.contract.protocol import Exit, Output
from worker.errors import OutOfMemory, Stopped, StoreFull, WorkerFailure, is_out_of_memory, is_store_full
from worker.paths import store_path

_TRACEBACK_LINES = 30
_PR_SET_PDEATHSIG = 1
_LESS_MEMORY = (
    "set a smaller stage.micro_batch or stage.max_length, stage.gradient_checkpointing: true, a higher deepspeed.zero, "
    "or stage.lora"
)


def main() -> NoReturn:
    """Runs this rank to its end; the process's exit code is one of `worker.contract.protocol.Exit`."""
    _die_with_launcher()
    parser = argparse.ArgumentParser(prog="worker.run")
    parser.add_argument("--order", type=Path, required=True)
    arguments = parser.parse_args()
    channel = Channel.from_environment()
    try:
        order = Order.model_validate_json(arguments.order.read_bytes())
        channel.finish(run_stage(order, channel))
        code = Exit.DONE
    # SystemExit from a library is a failure like any other.
    except BaseException as error:
        failure = failure_of(error)
        if not isinstance(error, Stopped):
            # A full disk takes no traceback, and must not hide why this rank ends.
            with contextlib.suppress(OSError):
                traceback.print_exc()
        channel.fail(failure)
        code = failure.exit
    _leave(code)


def run_stage(order: Order, channel: Channel) -> list[Output]:
    """Imports the stage, waits for the start, and runs it. Gives the outputs. Raises what the stage raises."""
    ahead.begin(order, channel.wait_for_start)
    # The slow imports come before the control plane's answer; they touch nothing of the job.
    # Where that comes first, they count as progress: a busy machine may take longer for them than limits.stall.
    with channel.working():
        stage = _import(module_of(order.spec.stage.type))
    channel.wait_for_start()
    context = Context(
        order=order,
        rank=int(os.environ["RANK"]),
        world=int(os.environ["WORLD_SIZE"]),
        channel=channel,
        store=store_path(order.store),
    )
    outputs: list[Output] = stage.run(context)
    return outputs


def module_of(stage: str) -> str:
    """The module of a stage. It has `run(context) -> list[Output]`, and is imported only where its stage is run."""
    return f"worker.stages.{stage}"


def _import(module: str) -> ModuleType:
    """Imports a module while the collector rests: it would look a million objects through, none of them garbage.

    They stay out of its sight for good, which shortens every later collection too.
    """
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()


def failure_of(error: BaseException) -> WorkerFailure:
    """What an exception means for the attempt; an unknown one carries the tail of its traceback."""
    if isinstance(error, WorkerFailure):
        return error
    if is_store_full(error):
        return StoreFull(f"the store has no room left ({error}); free some, or lower checkpoint.keep")
    if is_out_of_memory(error):
        first = (str(error).splitlines() or [""])[0]
        return OutOfMemory(f"{type(error).__name__}{': ' + first if first else ''}; {_LESS_MEMORY}")
    lines = "".join(traceback.format_exception(error)).splitlines()
    return WorkerFailure("\n".join([f"{type(error).__name__}: {error}", *lines[-_TRACEBACK_LINES:]]))


def _die_with_launcher() -> None:
    """Two answers to a launcher that dies: the channel's end (everywhere), and the kernel's signal (Linux).

    The second also reaches a rank whose threads cannot run, since a long call holds the interpreter's lock.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Signals for the whole group are the launcher's to answer: it tells the ranks by their channels. A handler of our
    # own, and not SIG_IGN, which processes that a rank starts would inherit.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)


def _leave(code: int) -> NoReturn:
    """Ends the process without the libraries' own farewells: these hang when another rank is gone already."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
