"""What a Job and its pods say of an attempt, from objects as the API server sends them."""

from typing import Any

import pytest

from api.domain.job import Reason
from api.operator.pods import observe, warned_of

pytestmark = pytest.mark.quick
UID = "the-uid"
FINISHED = "2030-01-01T00:00:{:02d}Z"


def a_job(nodes: int = 1, *conditions: tuple[str, str], uid: str = UID, **spec: Any) -> dict[str, Any]:
    """A Job with true conditions, each with a message."""
    return {
        "metadata": {"name": "job-a-a1", "uid": uid, "labels": {}, "creationTimestamp": FINISHED.format(0)},
        "spec": {"completions": nodes, **spec},
        "status": {"conditions": [{"type": kind, "status": "True", "message": said} for kind, said in conditions]},
    }


def a_pod(index: int = 0, phase: str = "Running", **status: Any) -> dict[str, Any]:
    """A pod of the attempt."""
    return {
        "metadata": {
            "name": f"job-a-a1-{index}-xyz", "uid": f"pod-{index}",
            "labels": {"batch.kubernetes.io/job-completion-index": str(index)},
        },
        "spec": {"nodeName": "node2"},
        "status": {"phase": phase, **status},
    }  # fmt: skip


def ended(
    index: int, code: int, words: str = "", reason: str = "Error", second: int = 5, **status: Any
) -> dict[str, Any]:
    """A pod whose container exited."""
    end = {"exitCode": code, "reason": reason, "message": words, "finishedAt": FINISHED.format(second)}
    statuses = [{"name": "worker", "state": {"terminated": end}}]
    return a_pod(index, "Failed" if code else "Succeeded", containerStatuses=statuses, **status)


def said(code: int, reason: str = "Said", message: str = "words") -> str:
    """A launcher's last words."""
    outcome = {0: "succeeded", 143: "stopped"}.get(code, "failed")
    return f'{{"outcome": "{outcome}", "reason": "{reason}", "message": "{message}", "exit_code": {code}}}'


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    """A pod whose container waits."""
    state = {"waiting": {"reason": reason, "message": message}}
    return a_pod(0, "Pending", containerStatuses=[{"name": "worker", "state": state}])


def disrupted(by: str) -> dict[str, Any]:
    """The condition of a pod that is taken away."""
    return {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": by, "message": f"because of {by}"}]}


def test_what_was_not_recorded_does_not_exist_though_it_may_live() -> None:
    assert not observe(None, None, []).exists
    seen = observe(None, a_job(), [a_pod()])
    assert (seen.exists, seen.alive) == (False, True)


def test_a_job_whose_pods_are_not_made_yet_lives() -> None:
    seen = observe(UID, a_job(2), [a_pod(0, "Succeeded")])
    assert (seen.exists, seen.alive, seen.failing) == (True, True, False)


def test_all_pods_that_succeeded_are_a_success_before_the_job_says_so() -> None:
    seen = observe(UID, a_job(2), [ended(0, 0, said(0)), ended(1, 0)])
    assert (seen.alive, seen.exit_code, seen.termination and seen.termination.outcome) == (False, 0, "succeeded")
    assert seen.ended_at is not None


def test_a_job_that_is_complete_is_a_success_though_its_pods_are_gone() -> None:
    assert observe(UID, a_job(1, ("Complete", "")), []).exit_code == 0


def test_the_jobs_condition_names_the_code_when_the_pods_are_gone() -> None:
    told = "Container worker for pod ns/job-a-a1-0-xyz failed with exit code 4 matching FailJob rule at index 2"
    seen = observe(UID, a_job(1, ("FailureTarget", told)), [])
    assert (seen.alive, seen.exit_code) == (False, 4)
    taken = observe(UID, a_job(1, ("Failed", "Pod ns/x has condition DisruptionTarget matching FailJob rule")), [])
    assert taken.reason == Reason.PREEMPTED


def test_a_failed_pod_beside_one_that_runs_is_failing_and_no_end() -> None:
    seen = observe(UID, a_job(2), [ended(1, 137), a_pod(0)])
    assert (seen.alive, seen.failing, seen.exit_code) == (True, True, None)


@pytest.mark.parametrize(
    ("pods", "code", "reason"),
    [
        # Killed for its memory, and the other one by its launcher's word of that.
        ([ended(0, 137, reason="OOMKilled"), ended(1, 137, said(137))], 137, Reason.OUT_OF_MEMORY),
        # A diverged rank is the cause, whichever pod ends first.
        ([ended(0, 143, said(143), second=1), ended(1, 4, said(4), second=2)], 4, None),
        # One is killed, and the Job's controller then ends the other.
        ([ended(0, 143, said(143), second=1), ended(1, 137, second=2)], 137, Reason.KILLED),
        ([ended(0, 143, said(143), **disrupted("EvictionByEvictionAPI"))], 143, Reason.PREEMPTED),
        ([ended(0, 137, **disrupted("DeletionByTaintManager"))], 137, Reason.NODE_LOST),
        ([ended(0, 128, "exec: no such file", "StartError")], 128, Reason.WORKER_ERROR),
        ([ended(0, 1, "a traceback")], 1, None),
        ([a_pod(0, "Failed", reason="Evicted", message="low on memory")], None, Reason.PREEMPTED),
        # One is refused by its node, and the Job's controller then ends the other.
        ([a_pod(1, "Failed", reason="OutOfcpu"), ended(0, 143, said(143))], None, Reason.KILLED),
    ],
)  # fmt: skip
def test_of_several_ends_the_cause_is_told(pods: list[dict[str, Any]], code: int | None, reason: Reason | None) -> None:
    for order in (pods, pods[::-1]):
        seen = observe(UID, a_job(len(pods), ("Failed", "")), order)
        assert (seen.alive, seen.exit_code, seen.reason) == (False, code, reason)


def test_a_job_that_somebody_deleted_is_over_once_its_pods_are() -> None:
    left = observe(UID, None, [a_pod()])
    assert (left.exists, left.alive, left.orphaned) == (True, True, True)
    gone = observe(UID, None, [])
    assert (gone.exists, gone.alive, gone.reason) == (True, False, Reason.KILLED)
    another = observe(UID, a_job(uid="somebody-elses"), [])
    assert (another.exists, another.alive) == (True, False)


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        (waiting("ErrImagePull", "no such image"), Reason.IMAGE_PULL, "no such image"),
        (waiting("InvalidImageName", "bad name"), Reason.IMAGE_PULL, "bad name"),
        (waiting("CreateContainerConfigError", "no such secret"), Reason.UNSCHEDULABLE, "no such secret"),
        (
            a_pod(0, "Pending", conditions=[{"type": "PodScheduled", "status": "False", "message": "0/2 nodes"}]),
            Reason.UNSCHEDULABLE,
            "0/2 nodes",
        ),
        (a_pod(0, **disrupted("DeletionByTaintManager")), Reason.NODE_LOST, "node2"),
    ],
)
def test_what_holds_a_pod_up_is_told_in_the_clusters_words(pod: dict[str, Any], reason: Reason, words: str) -> None:
    seen = observe(UID, a_job(), [pod])
    assert (seen.alive, seen.holds) == (True, reason)
    assert words in seen.held


def test_a_job_without_pods_is_explained_by_its_warnings() -> None:
    warned = {UID: {"reason": "FailedCreate", "message": 'pods "x" is forbidden: exceeded quota: small'}}
    assert observe(UID, a_job(), [], warned).holds == Reason.QUOTA_WAIT
    assert observe(UID, a_job(), []).holds is None


def test_a_suspended_job_waits_and_one_that_lost_its_place_is_over() -> None:
    waits = observe(UID, a_job(suspend=True), [], queue="no quota left")
    assert (waits.alive, waits.suspended, waits.holds, waits.held) == (
        True, True, Reason.AWAITING_ADMISSION, "no quota left",
    )  # fmt: skip
    lost = observe(UID, a_job(suspend=True), [ended(0, 143, said(143))], queue="preempted")
    assert (lost.orphaned, lost.reason) == (True, Reason.PREEMPTED)
    # Those that are saving have their time.
    saving = observe(UID, a_job(suspend=True), [a_pod()])
    assert (saving.orphaned, saving.suspended) == (False, False)


def test_a_job_that_its_queue_takes_its_place_from_saves_first_and_is_told_as_preempted() -> None:
    saving = observe(UID, a_job(suspend=True), [a_pod()], queue="for a higher priority")
    assert (saving.orphaned, saving.failing, saving.holds) == (False, False, Reason.PREEMPTED)
    assert "for a higher priority" in saving.held
    failed = a_job(1, ("Failed", "container exited with code 143"), suspend=True)
    for pods in ([ended(0, 143, said(143))], [ended(0, 137)]):
        over = observe(UID, failed, pods, queue="for a higher priority")
        assert (over.alive, over.reason) == (False, Reason.PREEMPTED)
        assert "for a higher priority" in over.message
    # What it was by itself it still is.
    for code, how in ((0, "Complete"), (1, "Failed"), (4, "Failed")):
        over = observe(UID, a_job(1, (how, ""), suspend=True), [ended(0, code, said(code))], queue="for another")
        assert (over.exit_code, over.reason) == (code, None)


def test_the_time_to_start_begins_when_the_queue_has_admitted_a_job() -> None:
    job = a_job(suspend=False)
    job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "team-a"
    # Let in a moment ago, which its status does not tell yet; and before that, its queue had not said why it waits.
    assert observe(UID, job, []).suspended
    assert observe(UID, {**job, "spec": {**job["spec"], "suspend": True}}, [], queue=None).holds is None
    pod = a_pod(0, "Pending")
    pod["metadata"]["creationTimestamp"] = FINISHED.format(7)
    first = observe(UID, job, [pod])
    assert (first.suspended, first.admitted_at and first.admitted_at.second) == (False, 7)
    job["status"]["startTime"] = FINISHED.format(9)
    then = observe(UID, job, [])
    assert (then.suspended, then.admitted_at and then.admitted_at.second) == (False, 9)


def test_a_pod_that_was_given_up_with_its_node_takes_the_attempts_place() -> None:
    lost = observe(UID, a_job(), [a_pod(0, **disrupted("DeletionByTaintManager"))])
    assert (lost.alive, lost.orphaned, lost.reason) == (True, True, Reason.NODE_LOST)
    assert "node2" in lost.message
    evicted = observe(UID, a_job(), [a_pod(0, **disrupted("EvictionByEvictionAPI"))])
    assert (evicted.orphaned, evicted.reason) == (False, None)


def test_an_image_is_known_by_its_digest_alone() -> None:
    def running(image: str) -> dict[str, Any]:
        return a_pod(0, containerStatuses=[{"name": "worker", "imageID": image, "state": {"running": {}}}])

    digest = "registry.example/worker@sha256:" + "0" * 64
    assert observe(UID, a_job(), [running(digest)]).image == digest
    assert observe(UID, a_job(), [running("sha256:" + "0" * 64)]).image is None


def test_events_are_kept_of_attempts_alone() -> None:
    about = {"name": "job-abcdefgh2345-a12-0-xyz", "uid": "x"}
    assert warned_of({"involvedObject": about, "message": "words"}) == "job-abcdefgh2345-a12"
    # Others may write events, with names like ours and little else in them.
    for other in ({"name": "somebody-elses", "uid": "x"}, {"name": about["name"]}, {}):
        assert warned_of({"involvedObject": other, "message": "words"}) is None
    assert warned_of({"involvedObject": about}) is None
    assert warned_of({}) is None
