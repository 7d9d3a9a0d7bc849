"""The slow imports before a stage begins."""

import socket
import sys
import threading
from pathlib import Path

import pytest

from tests.process.attempts import Attempt
from worker import run
from worker.channel import Channel

SLOW = """
import time
from tests.process.test_imports import told

ends = time.monotonic() + 60
while not told.is_set() and time.monotonic() < ends:
    pass


def run(context):
    return []
"""
told = threading.Event()


def test_imports_that_take_long_are_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_stage.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(run, "module_of", lambda _: "slow_stage")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    # Open to the last: the end of a channel is the end of its process.
    ours, theirs = socket.socketpair()
    ours.sendall(b'{"start": true}\n')
    heard: list[bytes] = []

    def listen() -> None:
        with ours.makefile("rb") as lines:
            for line in lines:
                heard.append(line)
                told.set()

    threading.Thread(target=listen, daemon=True).start()
    assert run.run_stage(Attempt(tmp_path).order, Channel(theirs)) == []
    assert told.is_set()
    assert b'"mark": true' in heard[0]
    sys.modules.pop("slow_stage")
