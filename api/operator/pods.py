"""What an attempt's Job and pods say of it, as one Observation. Pure: objects in, a value out."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from api.domain.job import Reason
from api.domain.observation import Observation
from api.operator import labels
from api.operator.podspec import CONTAINER
from worker.contract.protocol import Exit, Termination, storable

Json = dict[str, Any]
INDEX = "batch.kubernetes.io/job-completion-index"
_OVER = ("Complete", "Failed", "FailureTarget", "SuccessCriteriaMet")
# Why pods were taken away (https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions).
_DISRUPTIONS = {
    "PreemptionByScheduler": Reason.PREEMPTED,
    "EvictionByEvictionAPI": Reason.PREEMPTED,
    "TerminationByKubelet": Reason.PREEMPTED,
    "DeletionByTaintManager": Reason.NODE_LOST,
    "DeletionByPodGC": Reason.NODE_LOST,
}
_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
# The Job controller's words on a failed pod. The code tells the cause when the pod itself is gone.
_EXIT_CODE = re.compile(r"failed with exit code (\d+)")
_DISRUPTED = re.compile(r"has condition DisruptionTarget")
_LONGEST = 4000


_ATTEMPT = re.compile(r"job-[a-z2-7]{12}-a[1-9][0-9]*")


def warned_of(event: Json) -> str | None:
    """The attempt that an event is about, by the name of its Job or pod; None: some other object."""
    about = event.get("involvedObject") or {}
    found = _ATTEMPT.match(str(about.get("name")))
    # Others may write events, too: what does not say of what, or nothing, is none of ours.
    return found[0] if found and about.get("uid") and event.get("message") else None


def observe(
    uid: str | None,
    job: Json | None,
    pods: Sequence[Json],
    warnings: Mapping[str, Json] = {},
    queue: str | None = "",
) -> Observation:
    """The attempt, from its Job (if there is one that is ours), its pods, and warnings by the uid of their object.

    `uid` is the Job's as it was recorded; None: none was, so that the attempt counts as not created, whatever is there.
    `queue` is what the queue says of a Job that waits in it; None: it has not said anything yet.
    """
    gone = job is None or (uid is not None and job["metadata"]["uid"] != uid)
    live = [pod for pod in pods if not _terminal(pod)]
    known = uid is not None
    if gone or job is None:
        cause = _cause(pods) or _Cause(None, Reason.KILLED, "its Job was deleted, by nobody here")
        return _observation(cause, exists=known, alive=bool(live), uid=uid, pods=live)
    is_over = over(job) or "deletionTimestamp" in job["metadata"] or _all_ended(job, pods)
    if not live and is_over:
        return _observation(_ending(job, pods, queue), exists=known, alive=False, uid=uid, pods=[])
    suspended = bool(job["spec"].get("suspend"))
    if suspended and not live and (pods or _begun(job)):
        return Observation(
            exists=known, alive=True, orphaned=True, uid=uid, reason=Reason.PREEMPTED, message=_taken_back(queue),
        )  # fmt: skip
    holds, held = _holds(job, pods, warnings, queue)
    admitted = _admitted_at(job, live)
    # Given up with its node: over for the control plane, which tells so to what runs there, if that still reports.
    lost = _lost_pod(live)
    return Observation(
        exists=known,
        alive=True,
        orphaned=lost is not None,
        reason=Reason.NODE_LOST if lost else None,
        message=f"{_node(lost)} stopped answering, and {lost['metadata']['name']} was given up with it" if lost else "",
        failing=is_over or any(_failed(pod) for pod in pods),
        # Admitted a moment ago, the Job does not say yet when: its time to start has not begun.
        suspended=not live and (suspended or (labels.queued(job) and admitted is None)),
        running=bool(live) and all(pod["status"].get("phase") == "Running" for pod in live),
        admitted_at=admitted,
        holds=holds,
        held=storable(held[:_LONGEST]),
        uid=uid,
        image=next((image for pod in pods if (image := _image(pod)) is not None), None),
    )


@dataclass(frozen=True, slots=True)
class _Cause:
    """Why an attempt ended."""

    exit_code: int | None
    reason: Reason | None
    message: str
    termination: Termination | None = None
    ended_at: datetime | None = None


def _observation(cause: _Cause, *, exists: bool, alive: bool, uid: str | None, pods: Sequence[Json]) -> Observation:
    holds, held = _lost(pods)
    return Observation(
        exists=exists,
        alive=alive,
        orphaned=alive and exists,
        exit_code=None if alive else cause.exit_code,
        termination=None if alive else cause.termination,
        reason=cause.reason,
        message=storable(cause.message[:_LONGEST]),
        uid=uid,
        ended_at=None if alive else cause.ended_at,
        holds=holds,
        held=held,
    )


def _ending(job: Json, pods: Sequence[Json], queue: str | None) -> _Cause:
    """The cause of the end of a Job that can start nothing any more."""
    cause = _own_ending(job, pods)
    stopped = cause.exit_code in (None, Exit.STOPPED, Exit.KILLED) and cause.reason in (None, Reason.KILLED)
    if stopped and job["spec"].get("suspend") and (pods or _begun(job)):
        return replace(cause, reason=Reason.PREEMPTED, message=_taken_back(queue))
    return cause


def _own_ending(job: Json, pods: Sequence[Json]) -> _Cause:
    """The same, as far as the Job and its pods tell it."""
    last = max((end for pod in pods if (end := _ended_at(pod)) is not None), default=None)
    if _condition(job, "Complete") or (pods and _all_ended(job, pods) and all(map(_succeeded, pods))):
        words = next((words for pod in sorted(pods, key=_index) if (words := _words(pod)) is not None), None)
        return _Cause(0, None, words.message if words else "", words, last)
    if (cause := _cause(pods)) is not None:
        return cause
    condition = _condition(job, "FailureTarget") or _condition(job, "Failed") or {}
    said = str(condition.get("message", ""))
    if found := _EXIT_CODE.search(said):
        code = int(found[1])
        reason = Reason.KILLED if code == Exit.KILLED else None
        return _Cause(code, reason, f"its pods are gone; their Job says: {said}", None, last)
    if _DISRUPTED.search(said):
        return _Cause(None, Reason.PREEMPTED, said)
    return _Cause(None, Reason.KILLED, said or "its pods were deleted, by nobody here")


def _cause(pods: Sequence[Json]) -> _Cause | None:
    """What the pods that failed say; of several, the one that was not ended for another's sake."""
    causes = [(rank, at or datetime.max, cause) for pod in pods if _failed(pod) for rank, at, cause in [_failure(pod)]]
    causes.sort(key=lambda entry: (entry[0], entry[1].timestamp() if entry[1] is not datetime.max else float("inf")))
    return causes[0][2] if causes else None


def _failure(pod: Json) -> tuple[int, datetime | None, _Cause]:
    """A failed pod's own story, with its rank: what says more comes first."""
    end, words, at = _terminated(pod), _words(pod), _ended_at(pod)
    name, code = pod["metadata"]["name"], end.get("exitCode")
    said = storable(str(end.get("message") or ""))
    disrupted = _condition(pod, "DisruptionTarget")
    if end.get("reason") == "OOMKilled":
        message = (
            f"{name} used more memory than its limit, and was killed; give resources.memory more, or make less of it: "
        )
        message += "a smaller stage.micro_batch or stage.max_length, a higher deepspeed.zero, or stage.lora"
        return 0, at, _Cause(Exit.KILLED, Reason.OUT_OF_MEMORY, message, None, at)
    if words is not None and words.exit_code not in (Exit.STOPPED, Exit.KILLED):
        return 1, at, _Cause(words.exit_code, None, words.message, words, at)
    if disrupted or pod["status"].get("reason") == "Evicted":
        by = str(disrupted.get("reason", "")) if disrupted else ""
        why = str(pod["status"].get("message") or (disrupted or {}).get("message") or by)
        taken = _DISRUPTIONS.get(by, Reason.PREEMPTED)
        return 2, at, _Cause(code, taken, f"{name}: {why}", words, at)
    if words is not None:
        # Who stopped when asked may have been asked because of another.
        killed = words.exit_code == Exit.KILLED
        reason = Reason.KILLED if killed else None
        return 3 if killed else 4, at, _Cause(words.exit_code, reason, words.message, words, at)
    if end.get("reason") in ("StartError", "ContainerCannotRun"):
        return 1, at, _Cause(code, Reason.WORKER_ERROR, f"{name} could not start: {said}", None, at)
    if code is None:
        why = str(pod["status"].get("message") or pod["status"].get("reason") or "it ended without a word")
        # One that its node refused (too little is free there) is why the others were told to stop.
        return 2 if pod["status"].get("reason") else 6, at, _Cause(None, Reason.KILLED, f"{name}: {why}", None, at)
    message = f"{name} exited with {code}" + (f": {said.strip()}" if said.strip() else "")
    if code not in (Exit.KILLED, Exit.STOPPED):
        return 1, at, _Cause(code, None, message, None, at)
    asked = "deletionTimestamp" in pod["metadata"]
    return 5 if asked else 3, at, _Cause(code, Reason.KILLED if code == Exit.KILLED else None, message, None, at)


def _holds(job: Json, pods: Sequence[Json], warnings: Mapping[str, Json], queue: str | None) -> tuple[str | None, str]:
    """What keeps an attempt that lives from starting, or from ending."""
    if job["spec"].get("suspend"):
        if not all(map(_terminal, pods)):
            return Reason.PREEMPTED, _taken_back(queue)
        if queue is None:
            return None, ""
        return Reason.AWAITING_ADMISSION, queue or "its Job is suspended until its queue admits it"
    if not pods:
        warned = warnings.get(job["metadata"]["uid"])
        if warned is None:
            return None, ""
        if "exceeded quota" in _said(warned):
            return Reason.QUOTA_WAIT, _said(warned)
        return (Reason.FORBIDDEN if "forbidden" in _said(warned) else Reason.UNSCHEDULABLE), _said(warned)
    lost = _lost([pod for pod in pods if not _terminal(pod)])
    if lost[0] is not None:
        return lost
    for pod in sorted(pods, key=_index):
        found = _held_up(pod, warnings)
        if found is not None:
            return found
    wanted = int(job["spec"].get("completions") or 1)
    warned = warnings.get(job["metadata"]["uid"])
    if len({_index(pod) for pod in pods}) < wanted and warned is not None:
        return Reason.QUOTA_WAIT if "exceeded quota" in _said(warned) else Reason.UNSCHEDULABLE, _said(warned)
    return None, ""


def _held_up(pod: Json, warnings: Mapping[str, Json]) -> tuple[str | None, str] | None:
    name, status = pod["metadata"]["name"], pod["status"]
    if status.get("phase") != "Pending":
        return None
    scheduled = next((c for c in status.get("conditions") or () if c["type"] == "PodScheduled"), None)
    if scheduled is not None and scheduled["status"] == "False":
        return Reason.UNSCHEDULABLE, f"{name}: {scheduled.get('message') or scheduled.get('reason') or ''}"
    waiting = _container(pod).get("state", {}).get("waiting") or {}
    warned = warnings.get(pod["metadata"]["uid"])
    words = str(waiting.get("message") or "")
    if waiting.get("reason") in _IMAGE:
        # A back-off says only that it waits; the event before it says for what.
        if waiting["reason"] == "ImagePullBackOff" and warned is not None and "pull" in _said(warned).lower():
            words = _said(warned)
        words, image = words or str(waiting["reason"]), str(_container(pod).get("image") or "")
        return Reason.IMAGE_PULL, f"{name}: {words}" if image in words else f"{name}: {words} ({image})"
    if waiting.get("reason") in _CONFIG:
        return Reason.UNSCHEDULABLE, f"{name}: {waiting['reason']}: {words}"
    if warned is not None and str(warned.get("reason", "")).startswith("Failed"):
        return Reason.UNSCHEDULABLE, f"{name}: {_said(warned)}"
    return None


def _lost(live: Sequence[Json]) -> tuple[str | None, str]:
    """Whether a pod was given up with its node, and cannot be seen to end."""
    pod = _lost_pod(live)
    if pod is None:
        return None, ""
    return Reason.NODE_LOST, (
        f"{_node(pod)} does not answer, and nobody knows whether {pod['metadata']['name']} still runs there; this "
        "ends when the node returns or is removed, or when an admin confirms that the attempt is dead"
    )


def _lost_pod(live: Sequence[Json]) -> Json | None:
    for pod in live:
        disrupted = _condition(pod, "DisruptionTarget")
        if disrupted and _DISRUPTIONS.get(str(disrupted.get("reason"))) is Reason.NODE_LOST:
            return pod
    return None


def _node(pod: Json) -> str:
    return str(pod["spec"].get("nodeName", "its node"))


def _taken_back(queue: str | None) -> str:
    return f"the queue took its place back{': ' + queue if queue else ''}"


def _admitted_at(job: Json, live: Sequence[Json]) -> datetime | None:
    """When its queue let a Job begin, as far as that is known; None for one without a queue."""
    if not labels.queued(job):
        return None
    # Its pods may be there before the Job says so.
    begun = min((pod["metadata"]["creationTimestamp"] for pod in live), default=None)
    return _time(job["status"].get("startTime") or begun)


def over(job: Json) -> bool:
    """Whether a Job has come to its end, so that it makes no pods any more."""
    return any(_condition(job, kind) for kind in _OVER)


def _begun(job: Json) -> bool:
    """Whether a Job has had pods. A queue that takes a place back leaves the counts."""
    status = job.get("status") or {}
    return bool(status.get("failed") or status.get("succeeded") or status.get("active") or status.get("terminating"))


def _all_ended(job: Json, pods: Sequence[Json]) -> bool:
    """Whether each of the Job's pods was there and is over: with a back-off limit of 0 none is made again."""
    wanted = int(job["spec"].get("completions") or 1)
    return len({_index(pod) for pod in pods if _terminal(pod)}) >= wanted and not job["spec"].get("suspend")


def _condition(item: Json, kind: str) -> Json | None:
    """The condition, if it is true."""
    for condition in (item.get("status") or {}).get("conditions") or ():
        if condition["type"] == kind and condition["status"] == "True":
            found: Json = condition
            return found
    return None


def _terminal(pod: Json) -> bool:
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def _failed(pod: Json) -> bool:
    return bool(pod["status"].get("phase") == "Failed")


def _succeeded(pod: Json) -> bool:
    return bool(pod["status"].get("phase") == "Succeeded")


def _index(pod: Json) -> int:
    label = str((pod["metadata"].get("labels") or {}).get(INDEX, 0))
    return int(label) if label.isdecimal() else 0


def _said(event: Json) -> str:
    return str(event.get("message", ""))[:_LONGEST]


def _container(pod: Json) -> Json:
    every = pod["status"].get("containerStatuses") or ()
    found: Json = next((status for status in every if status["name"] == CONTAINER), {})
    return found


def _image(pod: Json) -> str | None:
    """The image by its digest; None where it has none that could be pulled by (it was put there by hand)."""
    found = str(_container(pod).get("imageID") or "").removeprefix("docker-pullable://")
    return found if "@sha256:" in found else None


def _terminated(pod: Json) -> Json:
    found: Json = _container(pod).get("state", {}).get("terminated") or {}
    return found


def _words(pod: Json) -> Termination | None:
    """The launcher's last words, if the pod's container left them whole."""
    try:
        return Termination.model_validate_json(_terminated(pod).get("message") or "")
    except ValidationError:
        return None


def _ended_at(pod: Json) -> datetime | None:
    return _time(_terminated(pod).get("finishedAt"))


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
