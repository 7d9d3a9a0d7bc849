"""One node's mirror of a bucket: what waits for what, and how much of the node's disk it takes."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.attempts import JOB, until
from tests.storage.server import Answer, Line, Request
from worker import checkpoint
from worker.contract.check import parse_spec
from worker.contract.order import Order
from worker.fetching import Chosen
from worker.mirror import Failed, Fetched, Going, Mirror, News, Room, Said, Uploaded
from worker.storage import Away, ObjectStore
from worker.workplace import made


class Node:
    """A mirror, what it has told, and a rank's part in it."""

    def __init__(self, store: ObjectStore, folder: Path, attempt: int = 1):
        order = Order(
            job=JOB, attempt=attempt, spec=parse_spec({"stage": {"type": "rehearse"}}), inputs={}, store=store.url,
            scratch=str(folder), control_url_file="", token_file="", termination_file="", log_folder="",
        )  # fmt: skip
        self.news: list[News] = []
        self.folder, self.order = folder, order
        self.mirror = Mirror(order, made(order).order, 0, self.news.append)
        self.mirror.begin()

    def seals(self, step: int, files: int = 1) -> None:
        """A rank of the node seals a checkpoint of so many files and says so."""
        final = checkpoint.step_folder(self.folder / self.order.folder / "checkpoints", step)
        temporary = checkpoint.temporary_for(final)
        for rank in range(files):
            (temporary / f"rank-{rank}.json").write_text(json.dumps({"step": step}))
        sealed = checkpoint.seal(checkpoint.temporary_name(final), final)
        told = checkpoint.announce(final, sealed, step=step, store=self.folder)
        message = {"kind": "checkpoint", "checkpoint": told.model_dump(mode="json")}
        self.mirror.checkpoint(message)

    def told(self, kind: type[Any]) -> list[Any]:
        return [news for news in self.news if isinstance(news, kind)]

    def checkpoints(self) -> list[str]:
        """Those that take room on the node."""
        return sorted(path.name for path in self.folder.rglob("step-*"))


@pytest.fixture
def node(s3_line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    for name, value in s3_line.s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORKER_STORE_PATIENCE", "0.2")
    store = ObjectStore(f"s3://{s3_line.s3.bucket()}")
    nodes: list[Node] = []

    def make(attempt: int = 1) -> Node:
        nodes.append(Node(store, tmp_path / f"node-{attempt}", attempt))
        return nodes[-1]

    yield make
    for one in nodes:
        one.mirror.give_up()


def test_what_is_in_the_bucket_takes_no_room_on_the_node(node: Callable[..., Node]) -> None:
    here = node()
    for step in (10, 20):
        here.seals(step)
        until(lambda step=step: here.mirror.settled and here.checkpoints() == [], what=f"step {step}")
    assert [news.message["checkpoint"]["step"] for news in here.told(Uploaded)] == [10, 20]
    there = node(attempt=2)
    there.mirror.fetch()
    until(lambda: there.told(Fetched))
    assert there.told(Fetched)[0].path == f"jobs/{JOB}/a1/checkpoints/step-000000020"
    assert there.checkpoints() == ["step-000000020"]
    # The ranks have read it by the time that they have something to save.
    there.mirror.room(0, must=False)
    assert there.told(Room) == [Room(0, True)]
    assert there.checkpoints() == []


def test_the_next_checkpoint_waits_for_the_last_for_a_while_and_is_then_left_out_once_and_for_all(
    node: Callable[..., Node], s3_line: Line
) -> None:
    here = node()
    s3_line.before = lambda _: Answer(503, "SlowDown")
    here.mirror.room_within = 0.5
    here.seals(10)
    here.mirror.room(0, must=False)
    assert here.told(Room) == []
    until(lambda: here.mirror.answer() is None)
    assert here.told(Room) == [Room(0, False)]
    here.mirror.room(0, must=False)
    assert here.told(Room) == [Room(0, False)] * 2, "it waited again for a store that is known to be away"
    left_out = [said.message for said in here.told(Said) if said.type == "CheckpointLeftOut"]
    assert len(left_out) == 1
    assert left_out[0].startswith("the checkpoint of step 10 is not in the store after 0.5 s")
    # One that must be made waits for as long as it takes.
    here.mirror.room(0, must=True)
    here.mirror.hurry()
    assert len(here.told(Room)) == 2
    until(lambda: len(here.told(Said)) == 2)
    s3_line.before = lambda _: None
    until(lambda: here.mirror.answer() is None and len(here.told(Said)) == 3)
    assert here.told(Room)[-1] == Room(0, True)
    assert sorted(said.type for said in here.told(Said)) == ["CheckpointLeftOut", "StoreAway", "StoreBack"]


def test_whoever_waits_for_room_looks_up_when_the_attempt_is_to_end(node: Callable[..., Node], s3_line: Line) -> None:
    here = node()
    s3_line.before = lambda _: Answer(503, "SlowDown")
    here.seals(10)
    here.mirror.room(0, must=False)
    here.mirror.hurry()
    assert here.told(Room) == [Room(0, False)]


def test_the_same_step_sealed_twice_is_told_once_and_changes_nothing_there(
    node: Callable[..., Node], s3_line: Line
) -> None:
    here = node()
    here.seals(10)
    until(lambda: here.mirror.settled and here.checkpoints() == [])
    s3_line.forget()
    here.seals(10)
    until(lambda: here.mirror.settled and here.checkpoints() == [])
    assert s3_line.writes == []
    assert len(here.told(Uploaded)) == 1


def test_the_spool_is_there_before_the_checkpoint_that_makes_nobody_do_it_again(
    node: Callable[..., Node], s3_line: Line
) -> None:
    here = node()
    spool = here.folder / here.order.folder / "spool"
    spool.mkdir(parents=True)
    (spool / "000000000001.json").write_text("{}")
    here.seals(10)
    until(lambda: here.mirror.settled)
    names = [request.path.rpartition("/")[2] for request in s3_line.writes if request.method == "PUT"]
    assert names[-3:] == ["rank-0.json", "000000000001.json", "manifest.json"]
    (spool / "000000000001.json").unlink()
    here.mirror.close(10)
    assert any(request.query.startswith("delete") for request in s3_line.writes)


def test_a_checkpoint_waits_for_its_spool_to_be_there(node: Callable[..., Node], s3_line: Line) -> None:
    here = node()
    spool = here.folder / here.order.folder / "spool"
    spool.mkdir(parents=True)
    (spool / "000000000001.json").write_text("{}")
    s3_line.before = lambda request: Answer(503, "SlowDown") if "/spool/" in request.path and request.writes else None
    here.seals(10)
    until(lambda: here.told(Said))
    assert [request for request in s3_line.writes if request.path.endswith("manifest.json")] == []
    s3_line.before = lambda _: None
    until(lambda: here.told(Uploaded))


def slow(request: Request) -> None:
    """A line over which what a checkpoint is made of takes its time."""
    if "/checkpoints/" in request.path and "rank-" in request.path:
        time.sleep(0.2)


def test_what_is_large_takes_longer_than_a_store_may_be_away_and_gets_there(
    node: Callable[..., Node], s3_line: Line
) -> None:
    here = node()
    here.mirror.end_patience = 0.8
    s3_line.before = slow
    here.seals(10, files=32)
    here.mirror.room(0, must=True)
    until(lambda: here.mirror.answer() is None)
    assert here.told(Failed) == []
    assert here.told(Room) == [Room(0, True)]
    until(lambda: here.mirror.settled)


def test_a_store_that_goes_away_for_a_moment_at_the_end_of_a_long_fetch_is_not_away_for_good(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = node(attempt=2)
    here.mirror.end_patience, tried = 0.5, []

    def newest(*_: object) -> Chosen:
        tried.append(None)
        for _ in range(8):
            time.sleep(0.1)
            here.mirror.moved()
        if len(tried) == 1:
            raise Away("the store does not answer")
        return Chosen(None)

    monkeypatch.setattr(here.mirror._fetching, "newest", newest)
    here.mirror.fetch()
    until(lambda: here.told(Fetched) or here.told(Failed))
    assert here.told(Failed) == []
    assert [said.type for said in here.told(Said)] == ["StoreAway", "StoreBack"]


def test_a_store_that_takes_nothing_is_given_up_although_it_answers(node: Callable[..., Node], s3_line: Line) -> None:
    here = node()
    here.mirror.end_patience = 0.5
    s3_line.before = lambda request: Answer(503, "SlowDown") if request.writes else None
    here.seals(10)
    here.mirror.room(0, must=True)
    until(lambda: here.mirror.answer() is None)
    [failed] = here.told(Failed)
    assert failed.reason == "Killed"


def test_what_nobody_foresaw_is_told_and_what_comes_after_it_is_done(node: Callable[..., Node]) -> None:
    here = node()
    told = {"step": 5, "path": f"{here.order.folder}/checkpoints/step-000000005", "bytes": 1, "sha256": "0" * 64}
    here.mirror.checkpoint({"kind": "checkpoint", "checkpoint": told | {"at": "2026-01-01T00:00:00Z"}})
    until(lambda: here.told(Failed))
    [failed] = here.told(Failed)
    assert "step-000000005 has no manifest.json" in failed.message
    here.seals(10)
    until(lambda: here.told(Uploaded))


def test_a_log_that_grows_is_no_progress(node: Callable[..., Node], s3_line: Line) -> None:
    here = node()
    log = here.folder / here.order.folder / "log"
    log.mkdir(parents=True)
    (log / "rank-0.log").write_text("it still waits\n")
    here.mirror.close(10)
    assert s3_line.writes[-1].path.endswith("/rank-0.log")
    assert here.told(Going) == []
