"""Attempts of several nodes that share no folder: a checkpoint is whole, and told of, once all have put their part."""

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.engine import jobs
from tests.process.attempts import JOB, until
from tests.process.cluster import SpreadAttempt
from tests.process.listener import Listener
from tests.storage.attempts import assert_all_told_is_there
from tests.storage.server import Answer, Line, Request
from worker.storage import ObjectStore

STAGE: dict[str, Any] = {"steps": 60, "seed": 5}


class ApartAttempt(SpreadAttempt):
    """Its nodes have a temporary folder each, and a bucket."""

    def __init__(self, home: Path, store: ObjectStore, *given: Any, **named: Any):
        super().__init__(home, *given, **named)
        for node in self.nodes:
            node.order = node.order.model_copy(
                update={"store": store.url, "log_folder": str(node.scratch / "log"), "scratch": None}
            )
            node.order_file.write_text(node.order.model_dump_json())


@pytest.fixture
def store(s3_line: Line, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    bucket = s3_line.s3.bucket()
    for name, value in s3_line.s3.environment.items():
        monkeypatch.setenv(name, value)
    return ObjectStore(f"s3://{bucket}")


def test_nodes_that_share_nothing_but_a_bucket_go_on_from_what_all_of_them_have_put_there(
    listener: Listener, store: ObjectStore, s3_line: Line, tmp_path: Path
) -> None:
    # Of node 1 one part never comes: what lacks it is no checkpoint.
    s3_line.before = lambda request: (
        Answer(503, "SlowDown") if "step-000000040/node-1" in request.path and request.writes else None
    )
    stage = STAGE | {"seconds_per_step": 0.03}
    job = ApartAttempt(tmp_path, store, 1, nodes=2, per_node=2, stage=stage, checkpoint={"every_steps": 20})
    job.start()
    try:
        until(lambda: any("step-000000040/node-0" in r.path for r in s3_line.requests), 90)
        until(lambda: listener.step > 45)
        job.nodes[0].signal(signal.SIGKILL)
        assert [node.wait() for node in job.nodes] == [-9, 137]
    finally:
        job.kill_group()
    s3_line.before = lambda _: None
    assert [told.step for told in listener.checkpoints] == [20]
    assert_all_told_is_there(store, listener.checkpoints)
    names = {name.split("/")[0] for name in store.manifest(listener.checkpoints[0].path).files}
    assert names == {"node-0", "node-1"}
    first = len(listener.accepted)
    again = ApartAttempt(tmp_path, store, 2, nodes=2, per_node=2, stage=STAGE, checkpoint={"every_steps": 20})
    try:
        assert again.start().wait() == [0, 0], again.nodes[0].printed()
    finally:
        again.kill_group()
    assert min(listener.losses_since(first)) == 21
    assert [told.step for told in listener.checkpoints] == [20, 40, 60]
    assert_all_told_is_there(store, listener.checkpoints)
    for node in [*job.nodes, *again.nodes]:
        assert not list(node.scratch.rglob("step-*")) or node in job.nodes


def test_a_part_that_is_spoilt_on_any_node_makes_all_go_on_from_the_checkpoint_before(
    listener: Listener, store: ObjectStore, tmp_path: Path
) -> None:
    job = ApartAttempt(tmp_path, store, 1, stage=STAGE | {"seconds_per_step": 0}, checkpoint={"every_steps": 20})
    assert job.start().wait() == [0, 0], job.nodes[0].printed()
    store.put_bytes(f"jobs/{JOB}/a1/checkpoints/step-000000060/node-1/rank-1.json", b"spoilt")
    first = len(listener.accepted)
    again = ApartAttempt(tmp_path, store, 2, stage=STAGE | {"seconds_per_step": 0, "steps": 62})
    try:
        assert again.start().wait() == [0, 0], again.nodes[0].printed()
    finally:
        again.kill_group()
    assert min(listener.losses_since(first)) == 41
    [event] = [event for event in listener.events if event.type == "CheckpointDamaged"]
    assert event.message.startswith(
        f"the checkpoint jobs/{JOB}/a1/checkpoints/step-000000060 is passed over: node 1: step-000000060/node-1/rank-1"
    )


@pytest.mark.parametrize("zero", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_real_ranks_on_nodes_that_share_nothing_but_a_bucket_go_on_to_the_last_digit(
    listener: Listener, store: ObjectStore, s3_line: Line, tmp_path: Path, zero: int
) -> None:
    spec = jobs.spec(stage__steps=5, deepspeed__zero=zero, checkpoint={"every_steps": 2})
    rows = jobs.write_rows(tmp_path / "rows.jsonl", jobs.dialogues(9, seed=2))
    store.put_file(tmp_path / "rows.jsonl", "files/rows")
    given = rows.model_copy(update={"location": f"{store.url}/files/rows"})
    killed = threading.Event()
    jobs_of: list[ApartAttempt] = []
    losses: list[dict[int, float]] = []

    def kill(request: Request) -> None:
        # The second checkpoint is whole but for its manifest.
        if request.writes and request.path.endswith("step-000000004/manifest.json") and not killed.is_set():
            killed.set()
            jobs_of[0].nodes[0].signal(signal.SIGKILL)

    def before(request: Request) -> Answer | None:
        kill(request)
        return Answer(503, "Gone") if killed.is_set() else None

    s3_line.before = before
    for number in (1, 2):
        first = len(listener.accepted)
        jobs_of.append(ApartAttempt(tmp_path, store, number, inputs={"stage.data.train": given}, **spec))
        try:
            codes = jobs_of[-1].start().wait()
        finally:
            jobs_of[-1].kill_group()
        assert codes == ([-9, 137] if number == 1 else [0, 0]), jobs_of[-1].nodes[0].printed()
        s3_line.before = lambda _: None
        losses.append(listener.losses_since(first))
    assert [told.step for told in listener.checkpoints] == [2, 4]
    assert {r.resumed_from for r in listener.accepted} - {None} == {2}
    assert_all_told_is_there(store, listener.checkpoints)
    # Both have made these steps, the second from what the first had left in the bucket.
    assert set(losses[0]) >= {1, 2, 3, 4}
    assert set(losses[1]) == {3, 4, 5}
    assert [losses[0][step] for step in (3, 4)] == [losses[1][step] for step in (3, 4)]
    [output] = jobs_of[-1].nodes[0].termination().outputs
    assert store.manifest(output.path).sha256 == output.sha256
