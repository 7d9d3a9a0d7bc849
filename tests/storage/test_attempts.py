"""Attempts whose store is a bucket of a real S3 server: what they say is there is there, whatever happens to them."""

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.attempts import JOB, Attempt, until
from tests.process.listener import Listener
from tests.storage.attempts import BucketAttempt, assert_all_told_is_there, in_store, model_in_store, whole_checkpoints
from tests.storage.server import Answer, Line, Request
from worker import checkpoint, rehearsed
from worker.contract.protocol import Report
from worker.storage import ObjectStore

Make = Callable[..., BucketAttempt]
STEPS = 60
STAGE: dict[str, Any] = {"steps": STEPS, "seed": 5, "seconds_per_step": 0}


@pytest.fixture
def store(s3_line: Line, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The store as the test sees it, whatever becomes of the attempts' line to it."""
    for name, value in s3_line.direct.environment.items():
        monkeypatch.setenv(name, value)
    return ObjectStore(f"s3://{s3_line.s3.bucket()}/rlhf")


@pytest.fixture
def attempt(tmp_path: Path, store: ObjectStore, s3_line: Line) -> Iterator[Make]:
    """Makes attempts at one job; whatever is left of them at the end is killed."""
    made: list[BucketAttempt] = []

    def make(number: int = 1, **given: Any) -> BucketAttempt:
        made.append(BucketAttempt(tmp_path, store, s3_line.s3.environment, number, **given))
        return made[-1]

    yield make
    for one in made:
        one.kill_group()


def unbroken(home: Path, stage: dict[str, Any]) -> dict[int, float]:
    """The losses of the same job in a folder, never stopped."""
    home.mkdir()
    listener = Listener(home / "worker-url")
    listener.start()
    job = Attempt(home, stage=stage | {"seconds_per_step": 0, "checkpoint_bytes": 0}).start()
    assert job.wait() == 0
    listener.stop()
    return listener.losses


def kinds(listener: Listener) -> list[str]:
    return [event.type for event in listener.events]


def test_all_that_an_attempt_leaves_is_in_the_bucket_and_nothing_on_its_node(
    listener: Listener, attempt: Make, store: ObjectStore
) -> None:
    job = attempt(stage=STAGE | {"output": True}, checkpoint={"every_steps": 20}).start()
    assert job.wait() == 0, (job.folder / "launcher.log").read_text()
    assert [told.step for told in listener.checkpoints] == [20, 40, 60]
    assert_all_told_is_there(store, listener.checkpoints)
    [output] = job.termination().outputs
    assert store.manifest(output.path).sha256 == output.sha256
    assert b"checkpoint of step 60" in store.read(f"jobs/{JOB}/a1/log/rank-0.log")
    assert not list(store.list(f"jobs/{JOB}/a1/spool"))
    assert not [path for path in job.scratch.rglob("*") if path.is_file()]


# Of a checkpoint: a small file, a large one's begin, its two parts and its end, the manifest.
WRITES = 6


@pytest.mark.parametrize(
    "when",
    [
        pytest.param(["before", "after"], id="before and after"),
        pytest.param(["before"], id="before", marks=pytest.mark.soak),
        pytest.param(["after"], id="after", marks=pytest.mark.soak),
    ],
)
def test_a_job_that_is_killed_at_every_write_goes_on_from_the_newest_whole_checkpoint(
    listener: Listener, attempt: Make, store: ObjectStore, s3_line: Line, tmp_path: Path, when: list[str]
) -> None:
    stage = STAGE | {"checkpoint_bytes": 17 * 2**20, "seconds_per_step": 0.002}
    losses: dict[int, float] = {}
    for number in range(1, WRITES + 3):
        first, newest = len(listener.accepted), max([0, *steps_in(store)])
        job = attempt(number, stage=stage, checkpoint={"every_steps": 10})
        if number < WRITES + 2:
            kill_at_write(s3_line, job, number, when[number % len(when)])
        s3_line.forget()
        code = job.start().wait()
        until(lambda job=job: not job.alive(), what="the end of all its processes")
        assert code == (-9 if number < WRITES + 2 else 0)
        s3_line.before, s3_line.after = lambda _: None, lambda _: None
        assert_all_told_is_there(store, listener.checkpoints)
        assert {r.resumed_from for r in listener.accepted[first:]} - {None} <= {newest}
        heard = listener.losses_since(first)
        assert min(heard, default=newest + 1) == newest + 1
        losses |= heard
    expected = unbroken(tmp_path / "unbroken", STAGE)
    assert losses == {step: expected[step] for step in losses}
    assert losses[STEPS] == expected[STEPS]


def kill_at_write(line: Line, job: BucketAttempt, number: int, when: str) -> None:
    """The launcher gets SIGKILL as its write of this number comes, which the server hears of or not."""
    killed = threading.Event()

    def kill(request: Request) -> None:
        if request.writes and request.number == number and not killed.is_set():
            killed.set()
            job.signal(signal.SIGKILL)

    def before(request: Request) -> Answer | None:
        if when == "before":
            kill(request)
        # What a dead process has sent does not arrive.
        return Answer(503, "Gone") if killed.is_set() else None

    line.before = before
    line.after = kill if when == "after" else lambda _: None


def steps_in(store: ObjectStore) -> list[int]:
    return [int(path.rpartition("step-")[2]) for path in whole_checkpoints(store)]


def test_a_pause_waits_until_its_checkpoint_is_in_the_bucket(
    listener: Listener, attempt: Make, store: ObjectStore
) -> None:
    stage = STAGE | {"seconds_per_step": 0.02, "steps": 100_000, "checkpoint_bytes": 2**20}
    job = attempt(stage=stage, checkpoint={"every_steps": 100_000}).start()
    until(lambda: listener.step > 2)
    # Ranks work in a folder: who may into the bucket is none of their business.
    assert not [name for rank in job.ranks() for name in rank.environ() if name.startswith("AWS_")]
    job.signal(signal.SIGTERM)
    assert job.wait() == 143
    [told] = listener.checkpoints
    assert_all_told_is_there(store, [told])
    first = len(listener.accepted)
    job = attempt(2, stage=stage | {"steps": told.step + 3}).start()
    assert job.wait() == 0
    assert min(listener.losses_since(first)) == told.step + 1


def test_a_pause_whose_checkpoint_does_not_get_there_within_the_grace_ends_without_it(
    listener: Listener, attempt: Make, store: ObjectStore, s3_line: Line
) -> None:
    stage = STAGE | {"seconds_per_step": 0.02, "steps": 100_000}
    job = attempt(stage=stage, checkpoint={"every_steps": 100_000, "grace": 10}).start()
    until(lambda: listener.step > 2)
    s3_line.before = lambda request: Answer(503, "SlowDown") if request.writes else None
    job.signal(signal.SIGTERM)
    assert job.wait() == 143
    assert "not in the store when the time was over: the checkpoint of step" in job.termination().message
    assert listener.checkpoints == []
    assert whole_checkpoints(store) == {}


def test_training_goes_on_while_the_store_is_away_and_its_checkpoint_is_told_of_once_it_is_back(
    listener: Listener, attempt: Make, store: ObjectStore, s3_line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = STAGE | {"seconds_per_step": 0.02, "steps": 100_000}
    job = attempt(stage=stage, checkpoint={"every_steps": 5, "grace": 60})
    job.environment |= {"WORKER_STORE_PATIENCE": "1"}
    job.start()
    until(lambda: listener.step >= 1)
    s3_line.before = lambda request: Answer(503, "ServiceUnavailable")
    until(lambda: "StoreAway" in kinds(listener))
    assert "does not answer (ServiceUnavailable): the checkpoint of step" in listener.events[-1].message
    told = len(listener.checkpoints)
    s3_line.before = lambda _: None
    until(lambda: len(listener.checkpoints) > told)
    until(lambda: "StoreBack" in kinds(listener))
    job.signal(signal.SIGTERM)
    assert job.wait() == 143
    assert_all_told_is_there(store, listener.checkpoints)


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        (Answer(507, "XMinioStorageFull"), "StoreFull", "has no room left"),
        (Answer(403, "AccessDenied"), "WorkerError", "refuses the credentials"),
    ],
    ids=["full", "refused"],
)
def test_a_store_that_is_full_or_refuses_ends_the_attempt_with_one_sentence(
    listener: Listener, attempt: Make, s3_line: Line, answer: Answer, reason: str, words: str
) -> None:
    s3_line.before = lambda request: answer if "/checkpoints/" in request.path and request.writes else None
    job = attempt(stage=STAGE | {"steps": 100_000, "seconds_per_step": 0.02}, checkpoint={"every_steps": 5}).start()
    assert job.wait() == 1
    said = job.termination()
    assert (said.reason, "\n" in said.message) == (reason, False)
    assert words in said.message
    assert s3_line.s3.secret not in said.model_dump_json() + (job.folder / "launcher.log").read_text()
    assert listener.checkpoints == []


def test_credentials_that_are_refused_at_the_start_end_it_before_a_step(
    listener: Listener, attempt: Make, s3_line: Line, store: ObjectStore
) -> None:
    given = in_store(store, "files/f", b"{}")
    s3_line.before = lambda _: Answer(403, "InvalidAccessKeyId")
    job = attempt(stage=STAGE, inputs={"stage.data.train": given}).start()
    assert job.wait() == 2
    # The answer to HEAD has no body, and so no code.
    assert job.termination().message == f"the store {store.url} refuses the credentials (403)"
    assert listener.losses == {}


def test_a_model_from_the_bucket_is_read_and_a_spoilt_one_is_told(
    listener: Listener, attempt: Make, store: ObjectStore, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    rehearsed.write(checkpoint.temporary_for(folder), 2.5)
    checkpoint.seal(checkpoint.temporary_name(folder), folder)
    given = model_in_store(store, "models/m/1", folder)
    stage = STAGE | {"steps": 1, "model": "models/m"}
    assert attempt(stage=stage, inputs={"stage.model": given}).start().wait() == 0
    assert listener.losses[1] == pytest.approx(2.5, abs=0.5)
    store.put_bytes("models/m/1/model.safetensors", b"spoilt")
    job = attempt(2, stage=stage, inputs={"stage.model": given}).start()
    assert job.wait() == 3
    assert "models/m/1 is not what it was when the job was accepted" in job.termination().message


def test_a_spoilt_checkpoint_in_the_bucket_is_passed_over(
    listener: Listener, attempt: Make, store: ObjectStore
) -> None:
    job = attempt(stage=STAGE, checkpoint={"every_steps": 20}).start()
    assert job.wait() == 0
    store.put_bytes(f"jobs/{JOB}/a1/checkpoints/step-000000060/rank-0.json", b"spoilt")
    first = len(listener.accepted)
    assert attempt(2, stage=STAGE | {"steps": 62}).start().wait() == 0
    assert min(listener.losses_since(first)) == 41
    [event] = [event for event in listener.events if event.type == "CheckpointDamaged"]
    assert "the checkpoint of step 60 (attempt 1) is passed over: " in event.message


def test_of_an_attempt_that_is_over_nothing_is_written(listener: Listener, attempt: Make, store: ObjectStore) -> None:
    def gone(report: Report) -> int:
        return 200 if report.progress.step < 3 else 410

    listener.status = gone
    job = attempt(stage=STAGE | {"seconds_per_step": 0.02, "steps": 100_000}).start()
    assert job.wait() == 143
    assert list(store.list()) == []
    assert not [path for path in job.scratch.rglob("*") if path.is_file()]
