"""One node's part of an attempt, from its order to its exit code and its termination message.

Imports no torch, like all that the launcher is made of.
"""

import traceback
from pathlib import Path

from worker.contract.order import Order
from worker.contract.protocol import Exit
from worker.crew import node_index
from worker.errors import BadSpec
from worker.launcher import Launcher
from worker.logs import log
from worker.outbox import Outbox
from worker.outcome import failed
from worker.termination import TerminationFile
from worker.workplace import is_bucket, made


def launch(order: Order, order_file: Path, lock_fd: int | None) -> int:
    """Runs this node's part of an attempt to its end, writes its termination message, and gives the exit code."""
    if is_bucket(order):
        return _away_from_its_store(order, lock_fd)
    return _launch(order, order_file, lock_fd, None)


def _away_from_its_store(order: Order, lock_fd: int | None) -> int:
    """As `launch`, in a folder of this node that stands for the bucket."""
    try:
        workplace = made(order)
    except OSError as error:
        outcome = failed(Exit.FAILED, "WorkerError", f"{order.scratch or 'a temporary folder'}: {error.strerror}")
        TerminationFile(Path(order.termination_file), order.termination_limit).write(outcome.termination(step=0))
        return outcome.exit
    try:
        return _launch(workplace.order, workplace.order_file, lock_fd, order)
    finally:
        workplace.leave()


def _launch(order: Order, order_file: Path, lock_fd: int | None, mirrored: Order | None) -> int:
    """`mirrored`: the order as it was given, where its store is a bucket."""
    outbox = Outbox()
    file = TerminationFile(Path(order.termination_file), order.termination_limit)
    undelivered = 0
    try:
        if (node := node_index(order)) > 0:
            from worker.follower import follow

            return follow(order, order_file, lock_fd, node, file, mirrored)
        with Launcher(order, order_file, lock_fd, outbox, file, mirrored) as launcher:
            outcome = launcher.run()
            if outcome is None:
                # This attempt was over before it began: nothing of it may be touched, its own folder least of all.
                return Exit.STOPPED
            undelivered = launcher.deliver(outcome.finish)
    except BadSpec as failure:
        outcome = failed(Exit.BAD_SPEC, failure.reason, failure.message)
    except Exception:
        traceback.print_exc()
        outcome = failed(Exit.FAILED, "WorkerError", f"the launcher itself failed:\n{traceback.format_exc()[-4000:]}")
    file.write(outcome.termination(step=outbox.step, undelivered=undelivered))
    log(f"ended with {outcome.exit}: {outcome.finish.reason} {outcome.finish.message}")
    return outcome.exit
