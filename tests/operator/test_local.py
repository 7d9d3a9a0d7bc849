"""The local cluster against real processes: started once, found again, stopped, and never taken for dead."""

import asyncio
import json
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from api.domain.job import Reason
from api.operator.cluster import CannotStart, ClusterError
from api.operator.environment import environment
from api.operator.folder import Folder
from api.operator.local import LocalCluster
from tests.disks import small_disk
from tests.operator.builders import spec
from tests.operator.conftest import STAND_IN, holders, local, until

NAME = "job-a-a1"


async def started(cluster: LocalCluster, data: Path, **metadata: Any) -> Folder:
    """An attempt whose launcher has come to life."""
    order = cluster.order("job-a-a1", "job-a", 1, spec(metadata={k: str(v) for k, v in metadata.items()}), {})
    await cluster.ensure(NAME, order, "the token")
    folder = Folder(data / "attempts" / NAME)

    async def began() -> bool:
        whole = len(holders(data)) == 1 + int(metadata.get("ranks", 0))
        return (folder.log / "rank-0.log").exists() and (whole or folder.exit.exists())

    await until(began)
    return folder


async def over(cluster: LocalCluster) -> Any:
    """The observation of the attempt once it is dead."""

    async def dead() -> Any:
        seen = await cluster.observe(NAME)
        return None if seen.alive else seen

    return await until(dead)


async def test_what_was_never_started_does_not_exist(cluster: LocalCluster) -> None:
    seen = await cluster.observe(NAME)
    assert (seen.exists, seen.alive) == (False, False)
    await cluster.stop(NAME, 1.0)
    await cluster.remove(NAME)
    assert await cluster.names() == set()


async def test_an_attempt_lives_until_it_ends_and_its_last_words_are_read(cluster: LocalCluster, data: Path) -> None:
    await started(cluster, data, seconds=0.2)
    seen = await over(cluster)
    assert (seen.exists, seen.exit_code, seen.termination.step) == (True, 0, 3)
    assert seen.ended_at is not None


async def test_ensure_twice_starts_once(cluster: LocalCluster, data: Path) -> None:
    folder = await started(cluster, data)
    order = cluster.order("job-a-a1", "job-a", 1, spec(), {}).model_copy(update={"spec": folder.order().spec})  # type: ignore[union-attr]
    uids = {await cluster.ensure(NAME, order, "token") for _ in range(3)}
    assert len(uids) == 1
    assert len((folder.log / "starts").read_text().splitlines()) == 1


async def test_two_control_planes_that_ensure_at_once_start_one(data: Path) -> None:
    clusters = [local(data) for _ in range(8)]
    orders = [cluster.order("job-a-a1", "job-a", 1, spec(), {}) for cluster in clusters]
    calls = [c.ensure(NAME, o, "token") for c, o in zip(clusters, orders, strict=True)]
    await asyncio.gather(*calls, return_exceptions=True)

    async def began() -> bool:
        return (data / "attempts" / NAME / "log" / "starts").exists()

    await until(began)
    assert len(holders(data)) == 1


async def test_a_restarted_control_plane_finds_it_alive_and_dead(cluster: LocalCluster, data: Path) -> None:
    folder = await started(cluster, data)
    again = local(data)
    seen = await again.observe(NAME)
    assert (seen.exists, seen.alive, seen.orphaned) == (True, True, False)
    os.kill(folder.pid() or 0, signal.SIGKILL)
    seen = await over(again)
    assert (seen.exists, seen.exit_code, seen.reason) == (True, None, Reason.KILLED)
    order = again.order("job-a-a1", "job-a", 1, spec(), {})
    await again.ensure(NAME, order, "token")
    assert holders(data) == [], "what is dead is not started again"


async def test_a_launcher_that_died_before_its_pid_is_started_again(cluster: LocalCluster, data: Path) -> None:
    order = cluster.order("job-a-a1", "job-a", 1, spec(metadata={"dies": "1"}), {})
    for _ in range(5):
        await cluster.ensure(NAME, order, "token")
        assert not (await over(cluster)).exists
    with pytest.raises(CannotStart, match="it dies early") as refused:
        await cluster.ensure(NAME, order, "token")
    assert refused.value.reason is Reason.WORKER_ERROR


@pytest.mark.parametrize("step", ["folder", "spec", "token", "lock", "damaged"])
async def test_a_start_that_was_cut_off_is_made_whole(cluster: LocalCluster, data: Path, step: str) -> None:
    folder = Folder(data / "attempts" / NAME)
    folder.path.mkdir(parents=True)
    order = cluster.order("job-a-a1", "job-a", 1, spec(metadata={"seconds": "600"}), {})
    if step in ("spec", "token"):
        folder.spec.write_text(order.model_dump_json())
    if step == "token":
        folder.token.write_text("old")
    if step == "lock":
        folder.lock.touch()
    if step == "damaged":
        (folder.path / ".tmp-spec.json").write_text("half of")
    assert not (await cluster.observe(NAME)).exists
    await cluster.ensure(NAME, order, "new")

    async def began() -> bool:
        return folder.pid() is not None

    await until(began)
    assert folder.token.read_text() == "new"


async def test_the_token_is_for_its_owner_alone_and_in_no_environment(cluster: LocalCluster, data: Path) -> None:
    os.environ["DATABASE_URL"] = "postgresql://someone:secret@db/x"
    try:
        folder = await started(cluster, data)
    finally:
        del os.environ["DATABASE_URL"]
    assert stat.S_IMODE(folder.token.stat().st_mode) == 0o600
    env = psutil.Process(folder.pid()).environ()
    assert not [name for name, value in env.items() if "secret" in value or "the token" in value]


async def test_another_jobs_folder_is_not_adopted(cluster: LocalCluster, data: Path) -> None:
    await started(cluster, data)
    other = cluster.order("job-a-a1", "job-a", 1, spec(name="other"), {})
    with pytest.raises(CannotStart) as refused:
        await cluster.ensure(NAME, other, "token")
    assert refused.value.reason is Reason.NAME_CONFLICT


async def test_stop_asks_the_launcher_alone_and_it_ends_in_order(cluster: LocalCluster, data: Path) -> None:
    await started(cluster, data)
    await cluster.stop(NAME, 60.0)
    assert (await over(cluster)).exit_code == 143


async def test_after_its_grace_the_whole_group_is_killed(cluster: LocalCluster, data: Path) -> None:
    await started(cluster, data, deaf=1, ranks=2)
    await cluster.stop(NAME, 0.2)
    assert (await cluster.observe(NAME)).alive

    async def dead() -> bool:
        await cluster.stop(NAME, 60.0)
        return not (await cluster.observe(NAME)).alive

    await until(dead)
    assert holders(data) == []
    assert (await cluster.observe(NAME)).reason == Reason.KILLED


async def test_the_grace_runs_on_through_a_restart(cluster: LocalCluster, data: Path) -> None:
    await started(cluster, data, deaf=1)
    await cluster.stop(NAME, 0.2)
    await asyncio.sleep(0.2)
    await local(data).stop(NAME, 600.0)
    assert (await over(cluster)).reason == Reason.KILLED


async def test_ranks_without_a_launcher_are_alive_and_orphaned_until_they_are_killed(
    cluster: LocalCluster, data: Path
) -> None:
    folder = await started(cluster, data, ranks=2)
    os.kill(folder.pid() or 0, signal.SIGKILL)

    async def orphaned() -> bool:
        return (await cluster.observe(NAME)).orphaned

    await until(orphaned)
    with pytest.raises(ClusterError):
        await cluster.remove(NAME)
    again = local(data)
    await again.stop(NAME, 0.0)
    await over(again)
    assert holders(data) == []


async def test_a_frozen_launcher_is_killed_too(cluster: LocalCluster, data: Path) -> None:
    folder = await started(cluster, data)
    os.kill(folder.pid() or 0, signal.SIGSTOP)
    await cluster.stop(NAME, 0.0)
    assert (await over(cluster)).reason == Reason.KILLED


async def test_no_zombie_is_left(cluster: LocalCluster, data: Path) -> None:
    folder = await started(cluster, data, seconds=0.1)
    pid = folder.pid() or 0
    await over(cluster)

    async def reaped() -> bool:
        return not psutil.pid_exists(pid)

    await until(reaped)


async def test_the_end_of_a_launcher_is_told(cluster: LocalCluster, data: Path) -> None:
    told: list[str] = []
    cluster.watch(told.append)
    await started(cluster, data, seconds=0.1)

    async def heard() -> bool:
        return told == [NAME]

    await until(heard)


async def test_logs_are_the_last_mebibyte_of_each_rank(cluster: LocalCluster, data: Path) -> None:
    folder = await started(cluster, data, ranks=2)
    (folder.log / "rank-1.log").write_bytes(b"x" * 2**20 + b"the end")
    logs = await cluster.logs(NAME)
    assert set(logs) == {0, 1}
    assert (logs[1].start, len(logs[1].content), logs[1].content[-7:]) == (7, 2**20, b"the end")


async def test_remove_leaves_nothing_and_may_be_cut_off(cluster: LocalCluster, data: Path) -> None:
    await started(cluster, data, seconds=0)
    await over(cluster)
    (data / "attempts" / ".removed-job-b-a1").mkdir()
    await cluster.remove(NAME)
    assert await cluster.names() == set()
    assert list((data / "attempts").iterdir()) == []


async def test_a_damaged_last_word_is_no_success(cluster: LocalCluster, data: Path) -> None:
    folder = await started(cluster, data, seconds=0)
    await over(cluster)
    folder.exit.write_text(json.dumps({"outcome": "succeeded"}))
    seen = await cluster.observe(NAME)
    assert (seen.exit_code, seen.reason) == (None, Reason.KILLED)


def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path) -> None:
    with small_disk(tmp_path / "full", "16k") as full:
        (full / "ballast").write_bytes(b"x" * 12 * 1024)
        cluster = local(full)
        with pytest.raises(CannotStart, match=r"is full: free some space") as refused:
            asyncio.run(cluster.ensure(NAME, cluster.order("job-a-a1", "job-a", 1, spec(), {}), "token" * 4096))
        assert refused.value.reason is Reason.STORE_FULL


def test_names_that_lead_elsewhere_are_refused(cluster: LocalCluster) -> None:
    for name in ("../x-a1", "a", "job-a-a0", "job a-a1", ""):
        with pytest.raises(ValueError, match="no attempt's name"):
            cluster.order(name, name, 0, spec(), {})


@pytest.mark.quick
def test_only_what_a_worker_needs_is_handed_on() -> None:
    given = {
        "PATH": "/bin",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "AWS_SECRET_ACCESS_KEY": "x",
        "HF_TOKEN": "x",
        "NCCL_DEBUG": "INFO",
    }
    env = environment(5, given, Path("/source"))
    assert env.items() >= {"PATH": "/bin", "HF_HUB_OFFLINE": "1", "NCCL_DEBUG": "INFO", "WORKER_LOCK_FD": "5"}.items()
    assert env["DS_ACCELERATOR"] == "cpu"
    assert not {"AWS_SECRET_ACCESS_KEY", "HF_TOKEN"} & set(env)
    assert "AWS_SECRET_ACCESS_KEY" in environment(5, given, Path("/source"), for_bucket=True)


def test_the_stand_in_is_found() -> None:
    assert Path(STAND_IN[1]).exists()
    assert STAND_IN[0] == sys.executable
