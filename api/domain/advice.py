"""What each reason means, and what to do about it: one table, and nothing of it is guessed."""

from collections.abc import Callable
from dataclasses import dataclass

from api.domain.case import Case, again, begins, other_spec, stands
from api.domain.cluster_words import hints
from api.domain.job import Phase, Reason
from api.domain.wording import amid, span
from worker.contract.protocol import Exit

# What workers say that end because of a store in a bucket.
_STORE_AWAY = ("the store s3://", "not in the store when the time was over")


@dataclass(frozen=True, slots=True)
class Advice:
    """What a reason means, as a clause; and what to do, as sentences."""

    means: str
    todo: Callable[[Case], list[str]]


def _invalid_spec(case: Case) -> list[str]:
    found = [hint.text for hint in hints(case.words, case.job.spec)]
    return [
        *(found or ["Change the field that is named; `rlhf submit FILE --dry-run` checks a spec."]),
        other_spec(case),
    ]


def _invalid_data(case: Case) -> list[str]:
    upload = "Mend the rows that are named, and give them: `rlhf files upload FILE`, or the path that the spec names."
    return [upload, other_spec(case, f"{_data_field(case)}=files/ID")]


def _data_field(case: Case) -> str:
    data = getattr(case.job.spec.stage, "data", None)
    return next((f"stage.data.{name}" for name in ("train", "prompts", "test") if hasattr(data, name)), "stage.data")


def _diverged(case: Case) -> list[str]:
    stage, lr = case.job.spec.stage, case.job.spec.lr
    todo = [f"{case.command('metrics')} shows the curves up to there. A retry would take the same steps again."]
    if hasattr(stage, "optimizer"):
        now = f" (it is {lr:g})" if lr else ""
        todo.append(f"What helps most is a lower stage.optimizer.lr{now}, or a longer stage.optimizer.warmup.")
    if getattr(stage, "guards", None) is not None:
        todo.append("If a guard stopped it that need not have: stage.guards.")
    return [*todo, other_spec(case, *(["stage.optimizer.lr=RATE"] if hasattr(stage, "optimizer") else []))]


def _out_of_memory(case: Case) -> list[str]:
    stage = case.job.spec.stage
    smaller = [f"stage.{name}" for name in ("micro_batch", "max_length") if hasattr(stage, name)]
    estimate = "`rlhf estimate SPEC --memory SIZE` tells what a spec needs, and the nearest one that fits."
    if case.exit_code == Exit.KILLED:
        most = case.job.spec.resources.memory
        asked = f" (it is {most})" if most is not None else ""
        first = f"Its container reached its limit of memory: raise resources.memory{asked}."
        settings = ["resources.memory=SIZE"]
    else:
        first = "Make less of it: " + ", ".join([*(f"a smaller {name}" for name in smaller), "a higher deepspeed.zero"])
        first += ", or more ranks (resources.per_node, resources.nodes)."
        settings = [f"{smaller[0]}=NUMBER"] if smaller else ["deepspeed.zero=3"]
    return [first, estimate, other_spec(case, *settings)]


def _cluster(case: Case) -> list[str]:
    """What to do about the cluster's words; and how the job goes on from there."""
    found = hints(case.words, case.job.spec)
    settings = [hint.setting for hint in found if hint.setting]
    todo = [hint.text for hint in found]
    if settings:
        todo.append(other_spec(case, *settings))
    elif not found and case.kubernetes:
        todo.append("`kubectl get pods`, `kubectl describe pod` and `kubectl get events` in its namespace say more.")
    return todo


def _unschedulable(case: Case) -> list[str]:
    todo = _cluster(case)
    limit = case.job.spec.limits.start
    if not case.kubernetes:
        todo = [f"{case.command('logs')} says how far it came."]
    if case.failed:
        longer = f"If it only needs longer than limits.start ({span(limit)}): "
        todo += [longer + amid(other_spec(case, "limits.start=DURATION")), *again(case, "Once that is mended")]
    return todo


def _image_pull(case: Case) -> list[str]:
    todo = _cluster(case)
    if case.failed:
        return [*todo, *again(case, "Once the nodes can pull it")]
    remade = "Pods keep the image that they were made with: once WORKER_POD names another (and the control plane has "
    return [*todo, f"{remade}started again), {case.command('pause')} and {case.command('resume')} make new ones."]


def _quota_wait(case: Case) -> list[str]:
    return [*_cluster(case), *again(case, "Once there is room")]


def _admission(case: Case) -> list[str]:
    if not hints(case.words, case.job.spec):
        return [
            "It starts by itself once its queue admits it; `kubectl get workloads` shows who waits in it.",
            *again(case),
        ]
    return [*_cluster(case), *again(case)]


def _preempted(case: Case) -> list[str]:
    words, spec = case.words, case.job.spec
    todo = _goes_on(case)
    if "higher priority pod" in words or "accommodate a critical pod" in words:
        todo.append("Others go before it on a full node: a higher resources.pod.priority_class, if that is not right.")
    elif "low on resource: memory" in words and spec.resources.memory is None:
        todo.append("It asked for no memory of its own: with resources.memory it keeps what it was promised.")
    elif "EmptyDir" in words or "ephemeral" in words:
        todo.append("It wrote more than it may: resources.pod.volumes, the size_limit of an empty_dir; or write less.")
    elif "queue took its place back" in words:
        todo.append("Its queue gave its place to others: a higher queue.kueue_priority_class, if that is not right.")
    return [*todo, *_saves_sooner(case)]


def _killed(case: Case) -> list[str]:
    todo = _goes_on(case)
    if any(words in case.words for words in _STORE_AWAY):
        events = case.command("events")
        todo.append(f"See that the bucket answers its nodes: StoreAway and StoreBack in {events} say when it did not.")
    elif "ran out of memory" in case.words or case.exit_code == Exit.KILLED:
        where = "the node's" if case.kubernetes else "the machine's"
        todo.append(
            f"If nobody killed it, {where} memory ran out: `rlhf estimate SPEC` tells what it needs; make it smaller, "
            "or run fewer jobs beside it."
        )
    return [*todo, *_saves_sooner(case)]


def _goes_on(case: Case) -> list[str]:
    return again(case) if case.failed else ["Nothing: it goes on by itself."]


def _saves_sooner(case: Case) -> list[str]:
    every = case.job.spec.checkpoint.every_steps
    if case.failed and case.job.fruitless >= case.job.spec.retry.max_attempts:
        return [
            f"No attempt came as far as a new checkpoint (one every {every} steps): a smaller checkpoint.every_steps."
        ]
    return []


def _node_lost(case: Case) -> list[str]:
    job = case.job
    if job.phase not in (Phase.STARTING, Phase.RUNNING, Phase.FINISHING):
        return [*_goes_on(case), *_saves_sooner(case)]
    number = job.attempt.number if job.attempt is not None else 1
    known = [
        "If the node comes back, or is removed from the cluster (`kubectl delete node NODE`), this ends by itself.",
        f"If it is certain that nothing of attempt {number} runs any more (the machine is off, say): "
        f"`rlhf confirm-dead {job.id} --attempt {number}`.",
    ]
    if job.phase is Phase.FINISHING:
        return known
    limit = "start" if job.phase is Phase.STARTING else "stall"
    after = f"limits.{limit} ({span(getattr(job.spec.limits, limit))})"
    return [
        known[0],
        f"It is given up after {after}; {case.command('pause')} ends it sooner.",
        f"Then, {amid(known[1])}",
    ]


def _stalled(case: Case) -> list[str]:
    todo = [*_goes_on(case), f"{case.command('logs')} says what it was busy with."]
    stall = span(case.job.spec.limits.stall)
    return [
        *todo,
        f"If a step may take longer than limits.stall ({stall}): " + amid(other_spec(case, "limits.stall=DURATION")),
    ]


def _worker_error(case: Case) -> list[str]:
    found = hints(case.words, case.job.spec) if "could not start" in case.words else []
    todo = [hint.text for hint in found]
    if not todo:
        todo = [f"{case.command('logs')} says what it met; the end of its traceback is in {case.command('events')}."]
    if not case.failed:
        return [*todo, "It is tried once more by itself."]
    return [*todo, *again(case, "Once that is mended")]


def _deadline(case: Case) -> list[str]:
    limit = case.job.spec.limits.wall_clock
    counted = f"limits.wall_clock ({span(limit)})" if limit is not None else "limits.wall_clock"
    return [
        *again(case, f"With {counted} counted anew"),
        f"For a longer limit: {amid(other_spec(case, 'limits.wall_clock=DURATION'))}",
    ]


def _dependency(case: Case) -> list[str]:
    broken = [need for need in case.job.needs if need.phase in (Phase.FAILED, Phase.CANCELLED)]
    todo = [f"`rlhf explain {need.job}` says why the step {need.step} {stands(need.phase)}." for need in broken]
    if any(need.phase is Phase.CANCELLED for need in broken):
        return [*todo, "A cancelled step stays so: `rlhf pipeline submit FILE` makes a new pipeline."]
    pipeline = case.pipeline or "PIPELINE"
    return [*todo, f"Once that is mended, `rlhf pipeline retry {pipeline}`: all its failed steps go on."]


def _awaiting_step(case: Case) -> list[str]:
    stuck = {Phase.PAUSED: "resume", Phase.FAILED: "retry"}
    seen: dict[str, str] = {}
    for need in case.job.needs:
        if need.phase in stuck and not need.retried:
            seen[need.job] = f"The step {need.step} {stands(need.phase)}: `rlhf {stuck[need.phase]} {need.job}`."
        elif need.phase is not Phase.SUCCEEDED:
            seen[need.job] = f"Nothing: it starts by itself when {need.step} is done (`rlhf explain {need.job}`)."
    return list(seen.values())


def _name_conflict(case: Case) -> list[str]:
    attempt = case.job.attempt
    follows = f" ({case.job.id}-a{attempt.number + 1})" if attempt is not None else ""
    left = (
        f"What has the name was left alone: delete it, if nobody needs it. The next attempt has another name{follows}."
    )
    return [left, *again(case)]


def _forbidden(case: Case) -> list[str]:
    return [*_cluster(case), *again(case, "Once that is allowed")]


def _namespace_gone(case: Case) -> list[str]:
    return [
        "Make the namespace that NAMESPACE names (`kubectl create namespace`), and in it the operator's Role and its "
        "binding, and the store's claim.",
        *again(case, "Then"),
    ]


def _store_full(case: Case) -> list[str]:
    keep = case.job.spec.checkpoint.keep
    fewer = f" (a job keeps its newest checkpoints, this one {keep}: checkpoint.keep)" if keep > 1 else ""
    return [
        f"Make room: `rlhf delete JOB` removes the checkpoints of a job that is over, and no models{fewer}; or give "
        "the store a larger disk.",
        *again(case, "Then"),
    ]


def _service_away(case: Case) -> list[str]:
    reach = "See that it runs, and that workers reach it (its url in stage.reward.terms"
    reach += "; on Kubernetes, `egress` in the file of WORKER_POD)." if case.kubernetes else ")."
    return [reach, *_goes_on(case)]


def _back_off(case: Case) -> list[str]:
    return ["Nothing: the next attempt starts by itself."]


def _finished(case: Case) -> list[str]:
    match case.job.spec.stage.type:
        case "rehearse":
            return []
        case "evaluate":
            return [f"{case.command('metrics')} shows what it measured."]
    return ["`rlhf models list` shows what it handed over."]


def _paused(case: Case) -> list[str]:
    return [f"{case.command('resume')}: it {begins(case)}."]


def _guarded(case: Case) -> list[str]:
    looks = (
        f"Look at {case.command('metrics')} and {case.command('samples')}: what the guard found is in the words above."
    )
    return [looks, f"If it is well, {case.command('resume')} goes on; the guard looks again.", other_spec(case)]


def _cancelled(case: Case) -> list[str]:
    return [f"That is final; {case.command('clone')} makes a new job of the same spec."]


ADVICE: dict[Reason, Advice] = {
    Reason.INVALID_SPEC: Advice("its spec cannot be run", _invalid_spec),
    Reason.INVALID_DATA: Advice("its data cannot be used", _invalid_data),
    Reason.DIVERGED: Advice("its training diverged, or a guard of its spec stopped it", _diverged),
    Reason.OUT_OF_MEMORY: Advice("its memory did not suffice", _out_of_memory),
    Reason.IMAGE_PULL: Advice("the workers' image cannot be pulled", _image_pull),
    Reason.UNSCHEDULABLE: Advice("its pods cannot be placed, or not started", _unschedulable),
    Reason.PREEMPTED: Advice("its place was taken from it", _preempted),
    Reason.NODE_LOST: Advice("its node does not answer", _node_lost),
    Reason.KILLED: Advice("it was killed from outside", _killed),
    Reason.STALLED: Advice("it made no progress for too long", _stalled),
    Reason.WORKER_ERROR: Advice("its worker failed", _worker_error),
    Reason.DEADLINE_EXCEEDED: Advice("it ran for longer than limits.wall_clock allows", _deadline),
    Reason.DEPENDENCY_FAILED: Advice("a step that it needs will not come", _dependency),
    Reason.AWAITING_STEP: Advice("other steps of its pipeline come first", _awaiting_step),
    Reason.QUOTA_WAIT: Advice("a quota of its namespace is used up", _quota_wait),
    Reason.AWAITING_ADMISSION: Advice("its queue has not admitted it", _admission),
    Reason.BACK_OFF: Advice("its last attempt ended early, and the next one waits a while", _back_off),
    Reason.NAME_CONFLICT: Advice("something else has the name of its objects", _name_conflict),
    Reason.FORBIDDEN: Advice("the cluster refuses its objects", _forbidden),
    Reason.NAMESPACE_GONE: Advice("its namespace is gone", _namespace_gone),
    Reason.STORE_FULL: Advice("the store has no room left", _store_full),
    Reason.SERVICE_AWAY: Advice("a reward service does not answer", _service_away),
    Reason.FINISHED: Advice("it is done", _finished),
    Reason.PAUSED_BY_USER: Advice("its owner paused it", _paused),
    Reason.PAUSED_BY_GUARD: Advice("a guard of its spec paused it, for a person to look", _guarded),
    Reason.CANCELLED_BY_USER: Advice("its owner cancelled it", _cancelled),
}
