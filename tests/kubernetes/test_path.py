"""The whole path on a real cluster: a spec comes in, pods run the real worker, an outcome comes out."""

import pytest

from tests.e2e.plane import wait_until
from tests.kubernetes.plane import Plane, rehearsal

FOREVER = 10_000


def test_a_job_of_one_pod_succeeds_and_leaves_nothing_behind(plane: Plane) -> None:
    job = plane.client.jobs.create(rehearsal(6)).id
    ended = plane.comes_to(job, "succeeded")
    assert (ended.attempt, ended.progress and ended.progress.step) == (1, 6)
    plane.is_empty()
    # Its log is kept after its pod is gone, and what it wrote there is not kept twice.
    assert "training step" in "".join(line.text for line in plane.client.jobs.logs(job))
    assert not (plane.namespace.store / "jobs" / job / "a1" / "log").exists()


def test_two_pods_are_one_attempt_whose_logs_are_seen_while_they_run(plane: Plane) -> None:
    job = plane.client.jobs.create(rehearsal(FOREVER, resources={"nodes": 2})).id
    plane.reaches_step(job, 6)
    assert [line.rank for line in plane.client.jobs.logs(job)] == [0, 1]
    printed = plane.cluster.kubectl("-n", plane.namespace.name, "logs", plane.pods(job)[0]["metadata"]["name"])
    assert "[rank 0] " in printed
    plane.client.jobs.pause(job)
    plane.comes_to(job, "paused")
    saved = max(checkpoint.step for checkpoint in plane.client.jobs.checkpoints(job))
    assert saved >= 6
    plane.is_empty()
    assert [line.rank for line in plane.client.jobs.logs(job)] == [0, 1]
    plane.client.jobs.resume(job)
    plane.comes_to(job, "running")
    plane.reaches_step(job, saved + 2)
    assert plane.client.jobs.attempts(job)[-1].resumed_from == saved
    plane.client.jobs.cancel(job)
    plane.comes_to(job, "cancelled")
    plane.is_empty()


@pytest.mark.parametrize("phase", ["starting", "running", "finishing"])
@pytest.mark.parametrize(("wish", "end"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_wish_in_any_phase_leaves_nothing_behind(plane: Plane, phase: str, wish: str, end: str) -> None:
    # A pod that asks for more than there is stays in `starting`.
    resources = {"cpu": "1000"} if phase == "starting" else {}
    stage = {"checkpoint_bytes": 2**27} if phase == "finishing" else {}
    job = plane.client.jobs.create(rehearsal(FOREVER, resources=resources, stage=stage)).id
    plane.comes_to(job, "starting" if phase == "starting" else "running")
    if phase == "starting":
        wait_until(lambda: plane.objects("pods"), what="a pod")
    else:
        plane.reaches_step(job, 2)
    if phase == "finishing":
        plane.client.jobs.pause(job)
        plane.comes_to(job, "finishing", "paused")
    getattr(plane.client.jobs, wish)(job)
    plane.comes_to(job, end)
    plane.is_empty()


def test_what_was_deleted_is_gone_with_its_objects(plane: Plane) -> None:
    running = plane.client.jobs.create(rehearsal(FOREVER)).id
    plane.comes_to(running, "running")
    plane.client.jobs.cancel(running)
    plane.comes_to(running, "cancelled")
    plane.client.jobs.delete(running)
    wait_until(lambda: not (plane.namespace.store / "jobs" / running).exists(), what="the end of its files")
    plane.is_empty()


def test_a_worker_that_fails_says_why_by_its_exit_code(plane: Plane) -> None:
    said = {"diverged": "Diverged", "bad_data": "InvalidData", "out_of_memory": "OutOfMemory"}
    jobs = {}
    for kind in said:
        stage = {"fault": {"step": 3, "kind": kind}}
        jobs[kind] = plane.client.jobs.create(rehearsal(9, stage=stage)).id
    for kind, job in jobs.items():
        ended = plane.comes_to(job, "failed")
        assert (ended.reason, ended.fault, ended.attempt) == (said[kind], "user", 1)
    plane.is_empty()
