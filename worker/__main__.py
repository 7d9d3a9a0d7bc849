"""`python -m worker --order FILE`: one attempt on this machine, by its launcher."""

import os
import signal
import sys


def main() -> int:
    """Runs the attempt and gives its exit code."""
    # A signal that comes while this imports waits until it can be answered.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    lock_fd = _claim_lock()

    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser(prog="worker")
    parser.add_argument("--order", type=Path, required=True, help="the attempt's spec.json")
    arguments = parser.parse_args()

    from worker.attempt import launch
    from worker.contract.order import Order
    from worker.contract.protocol import Exit
    from worker.workplace import is_bucket

    try:
        order = Order.model_validate_json(arguments.order.read_bytes())
    except (OSError, ValueError) as error:
        print(f"{arguments.order} is no order that this version reads: {error}", file=sys.stderr)
        return Exit.BAD_SPEC
    code = launch(order, arguments.order, lock_fd)
    if is_bucket(order):
        # A call to a store that does not answer has a thread, which the interpreter would wait for.
        sys.stdout.flush()
        os._exit(code)
    return code


def _claim_lock() -> int | None:
    """Writes this process's id into the inherited lock's file, before anything slow: this attempt was started."""
    if (number := os.environ.get("WORKER_LOCK_FD")) is None:
        return None
    os.ftruncate(int(number), 0)
    os.pwrite(int(number), f"{os.getpid()}\n".encode(), 0)
    return int(number)


if __name__ == "__main__":
    sys.exit(main())
