"""The line between a rank and its launcher, and the outbox at its end."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.process.attempts import until
from worker.channel import SIGN_EVERY, Channel
from worker.contract.protocol import Checkpoint, Event, Finish, Sample, Termination
from worker.errors import Stopped, WorkerFailure
from worker.outbox import METRICS_A_REPORT, Outbox
from worker.samples import shown

pytestmark = pytest.mark.quick
AT = datetime(2026, 1, 1, tzinfo=UTC)


# Kept open to the last: the end of a channel is the end of its process, and that is pytest here.
_LINES: list["Line"] = []


class Line:
    """A channel, and the launcher's end of it."""

    def __init__(self, rank: int = 0):
        self.socket, theirs = socket.socketpair()
        self.channel = Channel(theirs, rank)
        _LINES.append(self)

    def say(self, message: dict[str, Any]) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def heard(self) -> list[dict[str, Any]]:
        """All that was said so far."""
        self.channel.flush()
        try:
            lines = self.socket.recv(2**20, socket.MSG_DONTWAIT).splitlines()
        except BlockingIOError:
            return []
        return [json.loads(line) for line in lines]


@pytest.fixture
def line() -> Line:
    return Line()


def test_a_rank_waits_until_it_is_told_to_start(line: Line) -> None:
    started = threading.Event()
    threading.Thread(target=lambda: (line.channel.wait_for_start(), started.set()), daemon=True).start()
    assert not started.is_set()
    line.say({"start": True})
    assert started.wait(10)


def test_a_rank_that_is_stopped_before_its_start_does_not_start(line: Line) -> None:
    line.say({"stop": "save"})
    with pytest.raises(Stopped):
        line.channel.wait_for_start()


def test_a_wish_to_save_may_become_one_to_discard_and_never_the_other_way(line: Line) -> None:
    assert line.channel.stop is None
    line.say({"stop": "save"})
    assert line.channel.wait_for_stop(10)
    assert line.channel.stop == "save"
    line.say({"stop": "discard"})
    until(lambda: line.channel.stop == "discard")
    line.say({"stop": "save"})
    line.say({"gathered": [1]})
    assert line.channel.gather(1) == [1]
    assert line.channel.stop == "discard"


def test_numbers_that_json_cannot_hold_are_left_out(line: Line) -> None:
    line.channel.report("training", step=3, metrics={"train/loss": float("nan"), "train/lr": 1e-4})
    (said,) = line.heard()
    assert said["metrics"] == {"train/lr": 1e-4}


def test_only_the_first_rank_s_word_of_an_answer_is_passed_on() -> None:
    sample = shown(step=1, index=2, prompt="well?", answer="yes", tokens=["yes"], kl=[0.5], reward=1.0, ended=True)
    first, second = Line(0), Line(1)
    for line in (first, second):
        line.channel.sample(sample)
    [said] = first.heard()
    assert (said["kind"], Sample.model_validate(said["sample"])) == ("sample", sample)
    assert second.heard() == []


def test_a_metric_without_a_name_in_the_table_is_refused_where_it_is_made(line: Line) -> None:
    with pytest.raises(ValueError, match="train/los"):
        line.channel.report("training", step=3, metrics={"train/los": 1.0})


def test_only_rank_0_reports_and_every_rank_may_tell_events() -> None:
    line = Line(rank=1)
    line.channel.report("training", step=3, metrics={"train/loss": 1.0})
    line.channel.event("Slow", "this rank waits for its disk", level="warning")
    assert [said["kind"] for said in line.heard()] == ["event"]


def test_progress_within_a_step_is_told_and_not_at_every_call(line: Line) -> None:
    for _ in range(1000):
        line.channel.going_on()
    assert [said["mark"] for said in line.heard()] == [True]
    line.channel._signed -= SIGN_EVERY
    line.channel.going_on()
    assert len(line.heard()) == 1


def test_work_without_steps_goes_on_for_as_long_as_the_process_computes(line: Line) -> None:
    with line.channel.working(look_every=0.05):
        deadline = time.monotonic() + 20
        while not (said := line.heard()):
            assert time.monotonic() < deadline
            sum(range(100_000))
    assert {message["mark"] for message in said} == {True}


def test_a_process_that_hangs_in_the_midst_of_long_work_does_not_go_on(line: Line) -> None:
    with line.channel.working(look_every=0.2):
        threading.Event().wait(1.0)
        # The first look may still see what came before.
        assert len(line.heard()) <= 1


def test_last_words_that_no_database_takes_are_made_such_that_it_does(line: Line) -> None:
    line.channel.event("Odd", "a\x00b\ud800c")
    line.channel.fail(WorkerFailure("d\x00e\ud83df"))
    event, failure = line.heard()
    assert event["event"]["message"] == "a\ufffdb\ufffdc"
    finish = Finish(outcome="failed", reason="WorkerError", message=failure["message"])
    assert finish.message == "d\ufffde\ufffdf"
    said = b'{"outcome": "failed", "reason": "WorkerError", "message": "g\\u0000h", "exit_code": 1}'
    assert Termination.model_validate_json(said).message == "g\ufffdh"


def test_the_end_of_the_channel_ends_a_process_that_is_busy_elsewhere() -> None:
    program = (
        "import socket, sys, hashlib; from worker.channel import Channel\n"
        "channel = Channel(socket.socket(fileno=int(sys.argv[1])))\n"
        "print('ready', flush=True)\n"
        "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2**31 - 1)\n"
    )
    ours, theirs = socket.socketpair()
    busy = subprocess.Popen(
        [sys.executable, "-c", program, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdout=subprocess.PIPE
    )
    theirs.close()
    assert busy.stdout is not None
    assert busy.stdout.readline() == b"ready\n"
    ours.close()
    assert busy.wait(10) == 137
    busy.stdout.close()


def report(**said: Any) -> dict[str, Any]:
    return {"kind": "report", "at": AT.timestamp(), "mark": True, "metrics": {}} | said


def test_many_messages_become_one_report_with_the_last_progress_and_all_points() -> None:
    outbox = Outbox()
    for step in (1, 2, 3):
        outbox.hear(report(activity="training", step=step, tokens=step * 10, metrics={"train/loss": 4.0 - step}))
    cut = outbox.cut()
    assert (cut.seq, cut.activity, cut.progress.step, cut.progress.tokens) == (1, "training", 3, 30)
    assert [(m.step, m.value, m.at) for m in cut.metrics] == [(1, 3.0, AT), (2, 2.0, AT), (3, 1.0, AT)]
    after = outbox.cut()
    assert (after.seq, after.metrics, after.progress) == (2, [], cut.progress)


def test_the_mark_grows_with_progress_alone() -> None:
    outbox = Outbox()
    marks = []
    for message in (report(step=1), report(step=1, mark=False), report(step=2)):
        outbox.hear(message)
        marks.append(outbox.cut().progress.mark)
    assert marks == [1, 1, 2]
    saved = Checkpoint(step=2, path="jobs/j", bytes=1, sha256="0" * 64, at=AT)
    outbox.hear({"kind": "checkpoint", "at": 0, "checkpoint": saved.model_dump(mode="json")})
    assert outbox.cut().progress.mark == 3


def test_news_that_is_too_much_for_one_report_goes_into_several_in_order() -> None:
    outbox = Outbox()
    for step in range(1, METRICS_A_REPORT + 11):
        outbox.hear(report(step=step, metrics={"train/loss": 1.0}))
    first = outbox.cut()
    assert outbox.pending()
    second = outbox.cut()
    assert not outbox.pending()
    assert [m.step for r in (first, second) for m in r.metrics] == list(range(1, METRICS_A_REPORT + 11))


def test_a_report_of_long_events_stays_below_what_the_control_plane_takes() -> None:
    outbox = Outbox()
    for number in range(50):
        event = Event(type="Long", message=chr(0x1F600 + number) * 8192, at=AT)
        outbox.hear({"kind": "event", "at": 0, "event": event.model_dump(mode="json")})
    cuts = []
    while outbox.pending():
        cuts.append(outbox.cut())
    assert max(len(cut.model_dump_json().encode()) for cut in cuts) < 2**19
    assert [event.message[0] for cut in cuts for event in cut.events] == [chr(0x1F600 + n) for n in range(50)]


def test_progress_that_is_no_number_is_passed_over_and_its_points_are_not() -> None:
    outbox = Outbox()
    outbox.hear(report(step=4, tokens_per_second=float("inf"), metrics={"train/loss": 1.0}))
    outbox.hear(report(step=5, tokens_per_second=2.0))
    cut = outbox.cut()
    assert cut.progress.step == 5
    assert [m.step for m in cut.metrics] == [4]


def test_while_it_is_being_ended_only_saving_is_news() -> None:
    outbox = Outbox()
    outbox.stopping()
    outbox.hear(report(activity="training"))
    assert outbox.cut().activity == "stopping"
    outbox.hear(report(activity="saving"))
    assert outbox.cut().activity == "saving"


def test_a_channel_given_by_the_environment_is_not_handed_on_to_children(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    monkeypatch.setenv("WORKER_CHANNEL_FD", str(theirs.fileno()))
    monkeypatch.setenv("RANK", "2")
    channel = Channel.from_environment()
    assert channel.rank == 2
    assert not os.get_inheritable(theirs.detach())
    channel.event("Hello", "from a rank")
    channel.flush()
    assert json.loads(ours.recv(4096))["event"]["type"] == "Hello"
    # As with every Line: its end would be the end of this process.
    ours.detach()
