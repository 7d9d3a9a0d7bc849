"""Real DeepSpeed over two nodes, which share the store's folder and meet over TCP."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine import jobs
from tests.process.cluster import SpreadAttempt
from tests.process.listener import Listener
from worker.contract.protocol import Report

STEPS = 6


@pytest.fixture
def listeners() -> Iterator[list[Listener]]:
    started: list[Listener] = []
    yield started
    for one in started:
        one.stop()


def train(
    home: Path,
    listeners: list[Listener],
    *,
    nodes: int,
    per_node: int,
    zero: int,
    attempt: int = 1,
    steps: int = STEPS,
    pause: bool = False,
) -> tuple[SpreadAttempt, Listener]:
    """An attempt at a tiny fine-tuning, to its end; the listener heard this attempt and the ones before."""
    if attempt == 1:
        home.mkdir()
        listeners.append(Listener(home / "worker-url"))
        listeners[-1].start()
    listener = listeners[-1]
    listener.desired = "run"

    def answer(report: Report) -> int:
        if pause and report.progress.step > 0:
            listener.desired = "pause"
        return 200

    listener.status = answer
    spec = jobs.spec(stage__steps=steps, deepspeed__zero=zero, checkpoint={"every_steps": 1000})
    given = jobs.write_rows(home / "rows.jsonl", jobs.dialogues(9, seed=2))
    job = SpreadAttempt(home, attempt, nodes=nodes, per_node=per_node, inputs={"stage.data.train": given}, **spec)
    try:
        job.start()
        codes = [node.process.wait(200) for node in job.nodes if node.process is not None]
        assert codes == [143 if pause else 0] * nodes, job.nodes[0].printed()
    finally:
        job.kill_group()
    return job, listener


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_two_nodes_of_one_rank_give_the_losses_of_one_node_of_two(
    tmp_path: Path, listeners: list[Listener], zero: int
) -> None:
    _, together = train(tmp_path / "one", listeners, nodes=1, per_node=2, zero=zero)
    job, apart = train(tmp_path / "two", listeners, nodes=2, per_node=1, zero=zero)
    assert sorted(apart.losses) == list(range(1, STEPS + 1))
    assert apart.losses == together.losses
    assert [output.kind for output in apart.finishes[-1].outputs] == ["model"]
    assert (job.own / "outputs" / "model" / "model.safetensors").is_file()


def test_a_pause_of_two_nodes_changes_no_digit(tmp_path: Path, listeners: list[Listener]) -> None:
    shape = {"nodes": 2, "per_node": 1, "zero": 2, "steps": 400}
    _, unbroken = train(tmp_path / "unbroken", listeners, **shape)
    first, _ = train(tmp_path / "paused", listeners, **shape, pause=True)
    (step,) = first.saved()
    assert 0 < step < 400
    _, paused = train(tmp_path / "paused", listeners, **shape, attempt=2)
    assert paused.accepted[-1].resumed_from == step
    assert paused.losses == unbroken.losses
