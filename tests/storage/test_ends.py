"""The end of an attempt whose store is a bucket, in the order in which its parts must come."""

import queue
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from worker import follower, launcher
from worker.contract.manifest import Manifest
from worker.contract.protocol import Finish
from worker.grace import Grace
from worker.mirror import Uploaded
from worker.outcome import Outcome


class Closed:
    """What stands for a mirror; it notes how long it had for its end."""

    def __init__(self) -> None:
        self.within: list[float] = []

    def close(self, within: float) -> None:
        self.within.append(within)


def test_the_last_files_leave_time_to_say_how_the_attempt_ended() -> None:
    mirror, ends = Closed(), Grace(5)
    ends.begin()
    one: Any = launcher.Launcher.__new__(launcher.Launcher)
    one._nodes, one._crew, one._grace = None, SimpleNamespace(close=lambda: None), ends
    one._shore, one._reporter = SimpleNamespace(mirror=mirror), SimpleNamespace(accepted=True, gone=False)
    one.__exit__(None, None, None)
    assert mirror.within[0] <= 4
    other: Any = follower.Follower.__new__(follower.Follower)
    other._mirror, other._mirroring, other._grace = mirror, True, ends
    said = Outcome(143, Finish(outcome="stopped", reason="Stopped")).termination(step=1)
    other.close(follower._Verdict(143, said))
    assert mirror.within[1] <= 4


@pytest.mark.parametrize("moves", [True, False])
def test_what_is_put_last_has_as_long_as_it_moves(moves: bool) -> None:
    done = Outcome(0, Finish(outcome="succeeded", reason="Finished"))
    mirror = SimpleNamespace(end_patience=0.2, given_up=False, moved_at=0.0, outputs=lambda _: None)
    mirror.given_up_at = lambda since: max(since, mirror.moved_at) + mirror.end_patience
    mirror.give_up = lambda: setattr(mirror, "given_up", True)
    shore: Any = SimpleNamespace(mirror=mirror, settled=False, failure=None, end=lambda outcome: outcome)
    one: Any = launcher.Launcher.__new__(launcher.Launcher)
    one._over, one._stop, one._grace, one._hear_store = False, None, Grace(60), lambda _: None
    ends_at = time.monotonic() + 0.8

    def turn() -> None:
        time.sleep(0.02)
        mirror.moved_at = time.monotonic() if moves else 0.0
        shore.settled = time.monotonic() >= ends_at

    one._turn = turn
    assert one._brought_home(shore, done) == done
    assert (shore.settled, mirror.given_up) == (moves, not moves)


def test_a_node_says_how_the_attempt_ended_before_its_last_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[str] = []
    said = Outcome(143, Finish(outcome="stopped", reason="Stopped")).termination(step=1)

    class Quick:
        def __init__(self, *_: object) -> None:
            pass

        def run(self) -> follower._Verdict:
            return follower._Verdict(143, said)

        def close(self, _: follower._Verdict) -> None:
            done.append("files")

    monkeypatch.setattr(follower, "Follower", Quick)
    file: Any = SimpleNamespace(write=lambda _: done.append("termination"))
    order: Any = SimpleNamespace(store=tmp_path.as_uri())
    assert follower.follow(order, tmp_path, None, 1, file, None) == 143
    assert done == ["termination", "files"]


def test_a_node_is_not_idle_before_it_has_told_of_its_last_part() -> None:
    one: Any = follower.Follower.__new__(follower.Follower)
    one._idle, one._news, one._crew = False, queue.SimpleQueue(), SimpleNamespace(ranks=[])
    said: list[Any] = []
    one._leader = SimpleNamespace(say=said.append)

    class Late:
        """Its last part gets there just when it is looked at."""

        settled_before = False

        @property
        def settled(self) -> bool:
            if not self.settled_before:
                self.settled_before = True
                one._news.put(Uploaded({"kind": "checkpoint"}, Manifest(files={})))
            return True

    mirror: Any = Late()
    one._hear_mirror(mirror)
    one._hear_mirror(mirror)
    assert [next(iter(message["store"])) for message in said] == ["part", "idle"]
