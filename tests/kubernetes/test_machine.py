"""The test cluster touches nothing of this machine that is not its own."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import build, layout, machine, node
from tests.cluster.machine import ClusterError
from tests.cluster.process import Processes, started_at


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    for name in made.names():
        made.stop(name)


def test_a_program_is_stopped_and_started_again_as_it_was(processes: Processes) -> None:
    processes.start("sleeper", ["sleep", "600"])
    first = processes.record("sleeper")
    assert first is not None and first.alive()
    processes.stop("sleeper")
    assert not processes.alive("sleeper") and started_at(first.pid) == ""
    processes.again("sleeper")
    again = processes.record("sleeper")
    assert again is not None and again.alive() and again.command == first.command


def test_a_program_that_ignores_the_request_to_end_is_killed(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.cluster.process.STOP_SECONDS", 0.2)
    processes.start("stubborn", ["sh", "-c", "trap '' TERM; while true; do sleep 1; done"])
    processes.stop("stubborn")
    assert not processes.alive("stubborn")


def test_a_frozen_program_can_be_stopped(processes: Processes) -> None:
    processes.start("sleeper", ["sleep", "600"])
    assert processes.signal("sleeper", signal.SIGSTOP)
    processes.stop("sleeper")
    assert not processes.alive("sleeper")


def test_another_program_with_the_pid_of_an_ended_one_is_never_signalled(processes: Processes, tmp_path: Path) -> None:
    processes.start("ours", ["sleep", "600"])
    processes.stop("ours")
    record = processes.record("ours")
    assert record is not None
    other = subprocess.Popen(["sleep", "600"])
    try:
        # Both may have begun in the same clock tick here; where a pid comes again, they did not.
        reused = dataclasses.replace(record, pid=other.pid, started_at=str(int(record.started_at) - 1))
        (tmp_path / "processes" / "ours.json").write_text(json.dumps(dataclasses.asdict(reused)))
        assert not processes.signal("ours", signal.SIGKILL)
        processes.stop("ours")
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_record_from_before_the_machine_was_started_again_is_no_process(processes: Processes, tmp_path: Path) -> None:
    processes.start("sleeper", ["sleep", "600"])
    record = processes.record("sleeper")
    assert record is not None
    other_boot = dataclasses.replace(record, boot="another")
    assert record.alive() and not other_boot.alive()


def test_only_its_own_traces_are_removed_from_the_machine_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "_CNI_RESULTS", tmp_path)
    monkeypatch.setattr(node, "_CONTAINER_LOGS", tmp_path)
    ours = ("rlhf-test-cluster-abc-eth0", "cni-loopback-abc-lo")
    others = ("another-def-eth0", "cni-loopback-def-lo")
    for name in (*ours, *others):
        (tmp_path / name).touch()
    (tmp_path / "ours.log").symlink_to(layout.FOLDER / "node99" / "gone.log")
    (tmp_path / "others.log").symlink_to("/var/log/pods/there.log")
    node.remove_traces(99)
    assert {file.name for file in tmp_path.iterdir()} == {*others, "others.log"}


def test_a_taken_port_is_named_with_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(layout, "ETCD", port)
        with pytest.raises(ClusterError, match=rf"{port} \(etcd\)"):
            layout.require_free_ports(1)


def test_a_changed_version_is_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {module.name: module.folder for module in build.ALL}
    monkeypatch.setattr(build, "MODULES", tmp_path)
    for module in build.ALL:
        (tmp_path / module.name).mkdir()
        for file in ("go.mod", "go.sum"):
            text = (Path(build.__file__).parent / "modules" / module.name / file).read_text()
            (tmp_path / module.name / file).write_text(text)
    assert {module.name: module.folder for module in build.ALL} == before
    changed = (tmp_path / "helm" / "go.mod").read_text().replace("helm.sh/helm/v4 v4", "helm.sh/helm/v4 v5")
    (tmp_path / "helm" / "go.mod").write_text(changed)
    assert build.HELM.folder != before["helm"]
    assert build.KUEUE.folder == before["kueue"]


def test_without_root_it_says_what_else_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match="as root.*TEST_KUBECONFIG"):
        machine.prepare(print)


def test_what_is_missing_is_named_where_it_cannot_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setitem(machine.PACKAGES, "runc", lambda: False)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ClusterError, match="no apt-get to install them: .*runc"):
        machine.prepare(print)
