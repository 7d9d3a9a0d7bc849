"""A launcher as small as the contract with the local cluster allows: the lock, the pid, `exit.json`, SIGTERM.

What it does follows from the order's metadata: `exit` (its code), `deaf` (it ignores SIGTERM), `ranks` (children that
hold the lock, and outlive it), `dies` (before it wrote its pid), `seconds` (how long it runs), `ledger` (a file that
it writes its begin and end to).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    order = json.loads(Path(sys.argv[sys.argv.index("--order") + 1]).read_text())
    wishes = order["spec"]["metadata"]
    if "dies" in wishes:
        sys.exit("it dies early")
    lock = int(os.environ["WORKER_LOCK_FD"])
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    # What a second start would show.
    with (Path(order["log_folder"]) / "starts").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    record(order, "begin")
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    for rank in range(int(wishes.get("ranks", "0"))):
        if os.fork() == 0:
            (Path(order["log_folder"]) / f"rank-{rank}.log").write_text(f"rank {rank} of {order['job']}\n")
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
            os._exit(0)
    (Path(order["log_folder"]) / "rank-0.log").write_text(f"hello from {order['job']}\n")
    until = time.monotonic() + float(wishes.get("seconds", "600"))
    while time.monotonic() < until:
        if asked and "deaf" not in wishes:
            end(order, 143)
        time.sleep(0.01)
    end(order, int(wishes.get("exit", "0")))


def record(order: dict[str, Any], what: str) -> None:
    if path := order["spec"]["metadata"].get("ledger"):
        with Path(path).open("a") as ledger:
            ledger.write(f"{time.monotonic_ns()} {order['job']} {order['attempt']} {what}\n")


def end(order: dict[str, Any], code: int) -> None:
    record(order, "end")
    outcome = {0: "succeeded", 143: "stopped"}.get(code, "failed")
    words = {"outcome": outcome, "reason": "Said", "message": "the stand-in is done", "exit_code": code, "step": 3}
    target = Path(order["termination_file"])
    temporary = target.with_name(".tmp-exit")
    temporary.write_text(json.dumps(words))
    temporary.replace(target)
    os._exit(code)


if __name__ == "__main__":
    main()
