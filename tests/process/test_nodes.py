"""Attempts of several nodes, whose launchers act as one."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.disks import small_disk
from tests.process.attempts import until
from tests.process.cluster import MakeSpread, SpreadAttempt, read_only
from tests.process.listener import TOKEN, Listener
from worker.link import BEAT, SILENT_BEATS
from worker.ranks import environment, rendezvous

LONG = {"steps": 100_000}
NEVER = {"every_steps": 1_000_000}


@pytest.fixture
def spread(tmp_path: Path) -> Iterator[MakeSpread]:
    """Makes attempts at one job; whatever is left of them at the end is killed."""
    made: list[SpreadAttempt] = []

    def make(number: int = 1, **given: Any) -> SpreadAttempt:
        made.append(SpreadAttempt(tmp_path, number, **given))
        return made[-1]

    yield make
    for one in made:
        one.kill_group()


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def losses_on_one_node(tmp_path: Path, ranks: int, steps: int, seed: int = 17) -> dict[int, float]:
    home = tmp_path / "one"
    home.mkdir()
    listener = Listener(home / "worker-url")
    listener.start()
    stage = {"steps": steps, "seconds_per_step": 0, "seed": seed}
    job = SpreadAttempt(home, nodes=1, per_node=ranks, stage=stage).start()
    assert job.wait() == [0]
    listener.stop()
    return listener.losses


@pytest.mark.parametrize(("nodes", "per_node"), [(2, 1), (3, 2)])
def test_nodes_together_do_what_one_does_and_all_end_with_the_same_words(
    listener: Listener, spread: MakeSpread, tmp_path: Path, nodes: int, per_node: int
) -> None:
    stage = {"steps": 30, "output": True, "samples": 2}
    job = spread(nodes=nodes, per_node=per_node, stage=stage, checkpoint={"every_steps": 10}).start()
    assert job.wait() == [0] * nodes
    assert listener.losses == losses_on_one_node(tmp_path, nodes * per_node, 30)
    assert [c.step for c in listener.checkpoints] == [10, 20, 30] == job.saved()
    states = [(job.own / "checkpoints/step-000000030" / f"rank-{n}.json").read_text() for n in range(nodes * per_node)]
    assert len(set(states)) == 1
    assert listener.finishes[-1].outcome == "succeeded"
    assert [output.kind for output in listener.finishes[-1].outputs] == ["model"]
    assert sum(len(report.samples) for report in listener.accepted) == 60
    told = [node.termination() for node in job.nodes]
    assert all(one == told[0] for one in told)
    assert told[0].outputs == listener.finishes[-1].outputs
    assert len(listener.finishes) == 1


def test_a_pause_saves_once_on_all_nodes_and_the_next_attempt_goes_on_exactly(
    listener: Listener, spread: MakeSpread, tmp_path: Path
) -> None:
    stage = {"steps": 500, "seed": 3}
    first = spread(1, stage=stage, checkpoint=NEVER).start()
    until(lambda: listener.step >= 5)
    listener.desired = "pause"
    assert first.wait() == [143, 143]
    (step,) = first.saved()
    assert {node.termination().step for node in first.nodes} == {step}
    assert {node.termination().outcome for node in first.nodes} == {"stopped"}
    listener.desired = "run"
    before = listener.losses
    assert max(before) == step
    second = spread(2, stage=stage, checkpoint=NEVER).start()
    assert second.wait() == [0, 0]
    assert listener.accepted[-1].resumed_from == step
    assert listener.losses == losses_on_one_node(tmp_path, 2, 500, seed=3)


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_a_signal_to_any_node_saves_and_stops_them_all(listener: Listener, spread: MakeSpread, asked: int) -> None:
    job = spread(nodes=3, stage=LONG, checkpoint=NEVER).start()
    until(lambda: listener.step > 0)
    job.nodes[asked].signal(signal.SIGTERM)
    assert job.wait() == [143, 143, 143]
    assert len(job.saved()) == 1
    assert [c.step for c in listener.checkpoints] == job.saved()
    assert listener.finishes[-1].outcome == "stopped"
    assert {node.termination().reason for node in job.nodes} == {"Stopped"}


def test_a_cancel_saves_nothing_on_any_node(listener: Listener, spread: MakeSpread) -> None:
    job = spread(stage=LONG, checkpoint=NEVER).start()
    until(lambda: listener.step > 0)
    listener.desired = "cancel"
    assert job.wait() == [143, 143]
    assert job.saved() == []


@pytest.mark.parametrize(("node", "rank"), [(0, 0), (1, 2), (1, 3)])
def test_a_killed_rank_of_any_node_takes_all_with_it(
    listener: Listener, spread: MakeSpread, node: int, rank: int
) -> None:
    job = spread(per_node=2, stage=LONG, checkpoint={"every_steps": 10}).start()
    until(lambda: listener.checkpoints)
    ranks = [process for one in job.nodes for process in one.ranks()]
    job.nodes[node].ranks()[rank % 2].kill()
    assert job.wait() == [137, 137]
    assert gone(ranks)
    for one in job.nodes:
        assert one.termination().reason == "Killed"
        assert f"rank {rank} was killed by SIGKILL" in one.termination().message
    assert listener.finishes[-1].reason == "Killed"


@pytest.mark.parametrize(
    ("kind", "code", "reason"),
    [("diverged", 4, "Diverged"), ("bad_data", 3, "InvalidData"), ("error", 1, "WorkerError")],
)
def test_a_failure_on_another_node_is_told_as_it_is(
    listener: Listener, spread: MakeSpread, kind: str, code: int, reason: str
) -> None:
    job = spread(stage={"steps": 30, "fault": {"step": 25, "kind": kind}}, checkpoint={"every_steps": 10}).start()
    assert job.wait() == [code, code]
    for node in job.nodes:
        assert node.termination().reason == reason
        assert "rank 1: " in node.termination().message
    assert job.saved() == [10, 20]


def test_a_node_that_vanishes_ends_the_attempt_as_killed_and_is_named(listener: Listener, spread: MakeSpread) -> None:
    job = spread(nodes=3, stage=LONG, checkpoint={"every_steps": 10}).start()
    until(lambda: listener.checkpoints)
    ranks = [process for one in job.nodes for process in one.ranks()]
    job.nodes[1].signal(signal.SIGKILL)
    assert job.wait() == [137, -9, 137]
    assert gone(ranks)
    for node in (job.nodes[0], job.nodes[2]):
        assert node.termination().reason == "Killed"
        assert "node 1 is gone: its launcher's connection broke" in node.termination().message
    assert listener.finishes[-1].reason == "Killed"


def test_nodes_do_not_outlive_their_leader(listener: Listener, spread: MakeSpread) -> None:
    job = spread(nodes=3, stage=LONG, checkpoint={"every_steps": 10}).start()
    until(lambda: listener.checkpoints)
    ranks = [process for one in job.nodes for process in one.ranks()]
    job.nodes[0].signal(signal.SIGKILL)
    assert job.wait() == [-9, 137, 137]
    until(lambda: gone(ranks), deadline=10)
    for node in job.nodes[1:]:
        assert node.termination().reason == "Killed"
        assert "node 0 is gone" in node.termination().message


@pytest.mark.soak
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_node_is_found_out_and_ended_without(listener: Listener, spread: MakeSpread, frozen: int) -> None:
    job = spread(stage=LONG, checkpoint={"every_steps": 10}).start()
    until(lambda: listener.checkpoints)
    os.killpg(job.nodes[frozen].pid, signal.SIGSTOP)
    awake = job.nodes[1 - frozen]
    assert awake.wait() == 137
    assert awake.termination().reason == "Killed"
    assert f"node {frozen} is gone: nothing was heard of it" in awake.termination().message
    os.killpg(job.nodes[frozen].pid, signal.SIGCONT)
    assert job.nodes[frozen].wait() == 137
    assert f"node {1 - frozen} is gone: its launcher's connection broke" in job.nodes[frozen].termination().message


@pytest.mark.soak
def test_nodes_that_are_all_frozen_for_long_go_on_when_they_are_woken(listener: Listener, spread: MakeSpread) -> None:
    job = spread(stage={"steps": 300}).start()
    until(lambda: listener.step > 0)
    for node in job.nodes:
        os.killpg(node.pid, signal.SIGSTOP)
    frozen_until = time.monotonic() + SILENT_BEATS * BEAT + 10
    until(lambda: time.monotonic() > frozen_until, deadline=90)
    for node in job.nodes:
        os.killpg(node.pid, signal.SIGCONT)
    assert job.wait() == [0, 0]


@pytest.mark.parametrize("status", [409, 410])
def test_an_attempt_that_is_over_before_it_began_writes_nothing_on_any_node(
    listener: Listener, spread: MakeSpread, status: int
) -> None:
    listener.status = lambda report: status
    job = spread(stage=LONG).start()
    assert job.wait() == [143, 143]
    assert job.in_store() == []
    assert [node.exit.read_bytes() for node in job.nodes] == [b"", b""]


def test_nothing_is_written_before_the_first_answer(listener: Listener, spread: MakeSpread) -> None:
    listener.status = lambda report: 503
    job = spread(stage={"steps": 20}, checkpoint={"every_steps": 10}).start()
    until(lambda: len(listener.seen) > 3 and all(node.ranks() for node in job.nodes))
    assert job.in_store() == []
    listener.status = lambda report: 200
    assert job.wait() == [0, 0]
    assert job.saved() == [10, 20]


def test_an_attempt_that_is_over_amid_its_work_ends_on_all_nodes(listener: Listener, spread: MakeSpread) -> None:
    job = spread(stage=LONG, checkpoint=NEVER).start()
    until(lambda: listener.step > 0)
    listener.status = lambda report: 409
    assert job.wait() == [143, 143]
    assert job.saved() == []


def test_a_node_may_be_up_long_before_its_leader_and_the_first_report_waits_for_all(
    listener: Listener, spread: MakeSpread
) -> None:
    job = spread(nodes=3, stage={"steps": 20}, checkpoint={"every_steps": 10})
    job.nodes[1].start()
    until(lambda: job.nodes[1].ranks() and "looking for node 0" in job.nodes[1].printed())
    job.nodes[0].start()
    until(lambda: "node 1 is here" in job.nodes[0].printed())
    assert listener.seen == []
    job.nodes[2].start()
    assert job.wait() == [0, 0, 0]


def test_a_node_that_does_not_come_ends_the_attempt(listener: Listener, spread: MakeSpread) -> None:
    job = spread(stage=LONG, limits={"start": "3s"})
    job.nodes[0].start()
    assert job.nodes[0].wait() == 137
    assert job.nodes[0].termination().reason == "Killed"
    assert "node 1 did not come within 3 s" in job.nodes[0].termination().message
    assert listener.seen == []


def test_a_leader_that_does_not_come_ends_the_node(listener: Listener, spread: MakeSpread) -> None:
    job = spread(stage=LONG, limits={"start": "3s"})
    job.nodes[1].start()
    assert job.nodes[1].wait() == 137
    assert "was not found" in job.nodes[1].termination().message
    assert job.in_store() == []


@pytest.mark.parametrize("node", [0, 1])
def test_a_signal_while_others_are_missing_ends_a_node_at_once(
    listener: Listener, spread: MakeSpread, node: int
) -> None:
    job = spread(stage=LONG)
    job.nodes[node].start()
    until(job.nodes[node].ranks)
    job.nodes[node].signal(signal.SIGTERM)
    assert job.nodes[node].wait() == 143
    assert job.nodes[node].termination().outcome == "stopped"
    assert job.in_store() == []


def test_an_order_that_lies_where_nothing_can_be_written_leaves_no_trace_of_a_run(
    listener: Listener, spread: MakeSpread
) -> None:
    job = spread(nodes=1, per_node=2, stage={"steps": 10})
    (node,) = job.nodes
    inode = node.exit.stat().st_ino
    with read_only(node.order_file.parent):
        node.start()
        until(lambda: list(node.scratch.glob("rlhf-*")))
        assert node.wait() == 0
    assert list(node.scratch.glob("rlhf-*")) == []
    assert sorted(path.name for path in node.folder.iterdir()) == ["etc", "stdout", "termination-log", "tmp"]
    assert node.exit.stat().st_ino == inode, "Kubernetes would not see another file in its place"


def test_what_ranks_print_goes_out_by_rank_and_into_the_store(listener: Listener, spread: MakeSpread) -> None:
    job = spread(stage={"steps": 30, "fault": {"step": 25, "kind": "error"}}).start()
    assert job.wait() == [1, 1]
    assert "[rank 0] training step" in job.nodes[0].printed()
    printed = job.nodes[1].printed()
    assert "[rank 1] RuntimeError: a planned error" in printed
    assert "[rank 0]" not in printed
    assert sorted(path.name for path in job.logs.iterdir()) == ["rank-0.log", "rank-1.log"]
    assert "RuntimeError: a planned error" in (job.logs / "rank-1.log").read_text()
    for node in job.nodes:
        assert TOKEN not in node.printed()
        own = [line for line in node.printed().splitlines() if not line.startswith("[rank ")]
        assert all(line[2] == line[5] == ":" for line in own), own


def test_a_rank_knows_its_place_among_all_and_on_its_node(tmp_path: Path) -> None:
    order = SpreadAttempt(tmp_path, nodes=2, per_node=2).nodes[1].order
    given = environment(order, 3)
    place = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    assert given.items() >= place.items()
    assert "GLOO_SOCKET_IFNAME" not in given
    assert order.meeting is not None
    assert given["MASTER_PORT"] == str(order.meeting.ranks_port)
    assert rendezvous(order, tmp_path) == f"tcp://127.0.0.1:{order.meeting.ranks_port}"


@pytest.mark.parametrize("index", ["2", "-1", "one"])
def test_a_node_that_the_attempt_does_not_have_is_refused(listener: Listener, spread: MakeSpread, index: str) -> None:
    job = spread(nodes=2)
    job.nodes[0].index = index  # type: ignore[assignment]
    job.nodes[0].start()
    assert job.nodes[0].wait() == 2
    assert index in job.nodes[0].termination().message
    assert job.in_store() == []


def test_logs_that_find_no_room_end_no_run(tmp_path: Path, listener: Listener, spread: MakeSpread) -> None:
    with small_disk(tmp_path / "store", "256k") as store:
        job = spread(stage={"steps": 600}, checkpoint=NEVER).start()
        until(lambda: listener.step > 0)
        with (
            pytest.raises(OSError, match="No space"),
            (store / "ballast").open("wb", buffering=0) as file,
        ):
            while True:
                file.write(b"\0" * 512)
        assert job.wait() == [0, 0]
    assert listener.step == 600


def test_logs_that_cannot_be_written_end_no_run(listener: Listener, spread: MakeSpread) -> None:
    job = spread(stage={"steps": 20})
    job.store.joinpath("jobs").write_text("no folder")
    for node in job.nodes:
        node.order_file.write_text(
            node.order.model_copy(update={"store": (job.store / "other").as_uri()}).model_dump_json()
        )
    job.start()
    assert job.wait() == [0, 0]
    assert "the log of rank 0 cannot be written" in job.nodes[0].printed()
    assert "[rank 1] " in job.nodes[1].printed()
