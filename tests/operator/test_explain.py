"""Why a job is where it is: every reason and every phase has its sentence, and its advice can be typed."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click import Group
from typer.main import get_command

from api.domain import cluster_words
from api.domain.advice import ADVICE
from api.domain.case import Case
from api.domain.explain import Explanation, Facts, Happened, Line, Tried, explain
from api.domain.job import Attempt, Desired, Job, Need, Phase, Reason
from client.cli import app
from tests.operator.builders import T0, at, attempt, job, spec
from worker.contract.spec import JobSpec

pytestmark = pytest.mark.quick
LOST = "node-2 does not answer, and nobody knows whether job-a-a1-0 still runs there"
TRACEBACK = "rank 0: RuntimeError: odd\nTraceback (most recent call last):\n  File x\nRuntimeError: odd"


def facts(about: Job, seconds: float = 100, **given: Any) -> Facts:
    return Facts(about, at(seconds), **given)


def told(about: Job, seconds: float = 100, **given: Any) -> Explanation:
    return explain(facts(about, seconds, **given))


def held(reason: Reason, message: str, phase: Phase = Phase.STARTING, **fields: Any) -> Explanation:
    return told(job(phase, reason=reason, message=message, **fields), kubernetes=True)


def ended(
    reason: Reason, message: str = "", exit_code: int | None = None, kubernetes: bool = False, **fields: Any
) -> str:
    """What to do about a job that failed, as one text."""
    tried = Tried(1, at(90), reason, message, exit_code)
    about = job(Phase.FAILED, reason=reason, message=message, **fields)
    return " ".join(told(about, tried=(tried,), kubernetes=kubernetes).todo)


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_is_said_in_a_sentence(phase: Phase) -> None:
    explanation = told(job(phase))
    assert re.fullmatch(r"[A-Z].*[.]", explanation.summary)
    assert "None" not in explanation.summary


@pytest.mark.parametrize("reason", Reason)
@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("kubernetes", [True, False])
def test_every_reason_has_its_advice_in_every_phase(reason: Reason, phase: Phase, kubernetes: bool) -> None:
    assert re.fullmatch(r"[a-z].*[^.]", ADVICE[reason].means)
    about = job(phase, reason=reason, message="words")
    sentences = ADVICE[reason].todo(Case(about, "words", None, kubernetes))
    explanation = told(about, kubernetes=kubernetes)
    for each in [explanation.summary, *explanation.because, *explanation.todo, *sentences]:
        assert each == each.strip() and each.endswith((".", "”"))
        assert "None" not in each
        assert "  " not in each


def test_the_table_holds_the_closed_list_and_nothing_else() -> None:
    assert set(ADVICE) == set(Reason)


_SETTLED = (Reason.FINISHED, Reason.PAUSED_BY_USER, Reason.CANCELLED_BY_USER, Reason.AWAITING_STEP, Reason.BACK_OFF)


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason not in _SETTLED])
def test_whatever_made_a_job_fail_there_is_something_to_do(reason: Reason) -> None:
    assert ended(reason, "words")


def _all_advice() -> str:
    """Every sentence that says what to do, for jobs of several stages."""
    sft = {"type": "sft", "model": "models/m", "data": "files/file-abcdefghijkl"}
    specs = [spec(), spec(stage=sft, resources={"nodes": 2, "per_node": 2, "memory": "1Gi"})]
    return "\n".join(
        sentence
        for reason in Reason
        for phase in Phase
        for given in specs
        for exit_code in (None, 137)
        for pipeline in (None, "pipe-a")
        for sentence in ADVICE[reason].todo(
            Case(job(phase, spec=given, fruitless=3), "words", exit_code, exit_code is not None, pipeline)
        )
    )


def test_every_command_of_the_advice_is_one_of_rlhf() -> None:
    found = set(re.findall(r"`rlhf ([^`]+)`", _all_advice()))
    assert len(found) > 20
    for typed in found:
        first, *rest = typed.split(" ")
        command = get_command(app).commands[first]  # type: ignore[attr-defined]
        if isinstance(command, Group):
            command = command.commands[rest.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known, typed


def _fields(schema: dict[str, Any], of: dict[str, Any], path: str = "") -> Iterator[str]:
    """The dotted paths of all fields."""
    if "$ref" in of:
        yield from _fields(schema, schema["$defs"][of["$ref"].rpartition("/")[2]], path)
    for part in (of.get("items"), *of.get("anyOf", ()), *of.get("oneOf", ())):
        if isinstance(part, dict):
            yield from _fields(schema, part, path)
    for name, field in of.get("properties", {}).items():
        yield f"{path}{name}"
        yield from _fields(schema, field, f"{path}{name}.")


def test_every_field_that_the_advice_names_is_one_of_the_spec() -> None:
    schema = JobSpec.model_json_schema()
    known = set(_fields(schema, schema))
    named = re.compile(r"(?:resources|limits|queue|checkpoint|stage|deepspeed|retry)\.[a-z_]+(?:\.[a-z_]+)*")
    hints = " ".join(path.read_text() for path in Path(cluster_words.__path__[0]).glob("*.py"))
    found = set(named.findall(_all_advice() + hints))
    assert len(found) > 20
    of_quotas = {"limits.cpu", "limits.memory", "limits.get"}  # Kubernetes' own names, and a dict's method
    assert found - of_quotas <= known


def _heard(seconds: float, progressed: float = 0) -> Attempt:
    """An attempt that reported last so many seconds after it was accepted."""
    return attempt(accepted_at=T0, progressed_at=at(progressed), reported_at=at(seconds))


def test_a_job_that_runs_well_says_so_with_its_step_and_its_last_report() -> None:
    explanation = told(job(attempt=_heard(98)), activity="training", step=5, steps=100)
    assert explanation.summary == "All is well: attempt 1 runs, training, at step 5 of 100."
    assert "It last reported 2 s ago." in explanation.because
    assert explanation.todo == ()


def test_one_that_has_gone_quiet_says_for_how_long_and_what_time_is_left() -> None:
    limits = {"stall": "30m", "wall_clock": "2h"}
    explanation = told(job(spec=spec(limits=limits), ran_for=600.0, attempt=_heard(500)), 900)
    assert explanation.summary == "Attempt 1 runs, but has not reported for 7 min."
    assert "limits.wall_clock (2 h) leaves it at least 95 min of running." in explanation.because


def test_one_that_reports_and_stands_still_says_what_time_is_left_to_it() -> None:
    explanation = told(job(spec=spec(limits={"stall": "30m"}), attempt=_heard(900)), 901)
    assert "It told of its last step, load or save 15 min ago." in explanation.because
    assert "limits.stall (30 min) leaves it at least 15 min to the next one." in explanation.because


def test_a_start_says_what_is_left_of_its_limit_and_one_that_waits_in_a_queue_that_it_does_not_count() -> None:
    assert (
        "limits.start (30 min) leaves it at least 20 min to its first report." in told(job(Phase.STARTING), 600).because
    )
    assert "limits.start (30 min) is over." in told(job(Phase.STARTING), 1801).because
    waits = held(Reason.AWAITING_ADMISSION, "LocalQueue team-b doesn't exist")
    assert "limits.start (30 min) is counted from its admission." in waits.because
    assert "leaves it" not in " ".join(waits.because)


def test_a_place_is_waited_for_behind_others() -> None:
    explanation = told(job(Phase.QUEUED, priority=3), line=Line(places=1, taken=1, ahead=2))
    assert explanation.summary == "It waits for a place: 1 of 1 taken, 2 jobs are ahead."
    assert '"priority": 4' in explanation.todo[0]
    assert told(job(Phase.QUEUED), line=Line(2, 1, 0)).summary == "It starts in a moment."


def test_a_projects_quota_is_waited_for() -> None:
    said = "project small has all the active jobs that it may: 2"
    explanation = told(job(Phase.QUEUED, reason=Reason.QUOTA_WAIT, message=said), kubernetes=True)
    assert explanation.summary == "It waits for its project's quota."
    assert any(said in because for because in explanation.because)
    assert not any("cluster's own words" in because for because in explanation.because)
    assert "rlhf projects limit" in explanation.todo[0]


def test_without_an_operator_nothing_else_matters() -> None:
    explanation = told(job(Phase.QUEUED), led=False)
    assert "No operator is at work" in explanation.because[0]
    assert "rlhf serve" in explanation.todo[0]
    assert "No operator" not in " ".join(told(job(Phase.SUCCEEDED), led=False).because)


def test_what_keeps_an_operator_from_hearing_the_cluster_is_told() -> None:
    explanation = told(job(Phase.RUNNING), unheard="pods is forbidden: may not list")
    assert explanation.because[0].startswith("The operator does not hear what happens on the cluster: ")
    assert "pods is forbidden: may not list" in explanation.because[0]
    assert "role" in explanation.todo[0]
    none = told(job(Phase.QUEUED), led=False, unheard="no route to host")
    assert ["No operator is at work" in none.because[0], "no route to host" in none.because[1]] == [True, True]
    assert "does not hear" not in " ".join(told(job(Phase.SUCCEEDED), unheard="no route to host").because)


def test_a_step_names_those_before_it_and_what_holds_them_up() -> None:
    runs = Need("stage.actor.model", "sft", "model", "job-sft", Phase.RUNNING)
    failed = Need("stage.critic.model", "rm", "model", "job-rm", Phase.FAILED, reason=Reason.OUT_OF_MEMORY)
    explanation = told(job(Phase.QUEUED, needs=(runs, failed), reason=Reason.AWAITING_STEP), pipeline="pipe-a")
    assert explanation.summary == "It waits for the steps that it needs: sft and rm."
    assert "It takes rm.model for stage.critic.model; job-rm has failed: OutOfMemory." in explanation.because
    assert "The step rm has failed: `rlhf retry job-rm`." in explanation.todo
    paused = told(job(Phase.QUEUED, needs=(replace(runs, phase=Phase.PAUSED),)))
    assert "`rlhf resume job-sft`" in paused.todo[0]
    broken = told(job(Phase.FAILED, needs=(failed,), reason=Reason.DEPENDENCY_FAILED), pipeline="pipe-a")
    assert [word in " ".join(broken.todo) for word in ("rlhf explain job-rm", "rlhf pipeline retry pipe-a")] == [
        True
    ] * 2


def test_a_back_off_tells_what_ended_the_attempt_and_when_the_next_one_starts() -> None:
    words = "job-a-a1-0: default-scheduler: preempting to accommodate a higher priority pod"
    about = job(
        Phase.QUEUED, reason=Reason.BACK_OFF, attempt=attempt(cleaned=True), not_before=at(120), newest_checkpoint=50,
        message=f"Preempted: {words}; next attempt in 30 s",
    )  # fmt: skip
    explanation = told(about, tried=(Tried(1, at(90), Reason.PREEMPTED, words, 143),), kubernetes=True)
    assert explanation.summary == "Attempt 1 ended early: its place was taken from it; the next one starts in 20 s."
    assert "Attempt 1 ended 10 s ago, Preempted, exit code 143." in explanation.because
    assert "Its newest checkpoint is that of step 50." in explanation.because
    assert "resources.pod.priority_class" in " ".join(explanation.todo)


def test_the_clusters_own_words_are_quoted_with_what_the_pods_ask_for() -> None:
    words = "job-a-a1-0: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    gpus = spec(resources={"per_node": 8, "accelerator": "nvidia.com/gpu", "memory": "400Gi"})
    explanation = held(Reason.UNSCHEDULABLE, words, spec=gpus)
    assert explanation.because[0] == f"Unschedulable, in the cluster's own words: “{words}”"
    assert "Its pod asks for 8 nvidia.com/gpu and 400Gi of memory." in explanation.because
    assert "`rlhf cancel job-a`, and `rlhf clone job-a --set resources.per_node=NUMBER`" in explanation.todo[-1]


def test_a_limit_of_time_leaves_the_clusters_words_in_the_failure() -> None:
    words = "it did not report within limits.start (1800 s): job-a-a1-0: 0/3 nodes are available: 3 Insufficient cpu."
    todo = ended(Reason.UNSCHEDULABLE, words, kubernetes=True)
    assert "resources.cpu=CORES" in todo
    assert "limits.start=DURATION" in todo
    assert "`rlhf retry job-a`: it begins anew." in todo
    assert "rlhf logs" in ended(Reason.UNSCHEDULABLE, "it did not report within limits.start (1800 s)")


def test_a_quota_that_refused_pods_until_the_limit_is_still_known_by_its_words() -> None:
    refused = (
        'Error creating: pods "x" is forbidden: exceeded quota: small, requested: pods=1, used: pods=0, limited: pods=0'
    )
    assert "quota small" in ended(
        Reason.UNSCHEDULABLE, f"it did not report within limits.start (6 s): {refused}", kubernetes=True
    )


def test_pods_keep_their_image_while_they_wait_and_a_retry_takes_the_new_one() -> None:
    words = 'job-a-a1-0: Failed to pull image "w:1": failed to resolve reference "w:1": w:1: not found'
    waiting = " ".join(held(Reason.IMAGE_PULL, words).todo)
    assert "has no image w:1" in waiting
    assert "`rlhf pause job-a` and `rlhf resume job-a`" in waiting
    assert "rlhf retry" not in waiting
    assert "`rlhf retry job-a`" in ended(Reason.IMAGE_PULL, words, kubernetes=True)


def test_memory_is_the_containers_limit_or_the_accelerators() -> None:
    limited = ended(Reason.OUT_OF_MEMORY, "it was killed", 137, kubernetes=True, spec=spec(resources={"memory": "1Gi"}))
    assert "resources.memory (it is 1Gi)" in limited
    assert "--set resources.memory=SIZE" in limited
    sft = spec(stage={"type": "sft", "model": "models/m", "data": "files/file-abcdefghijkl"})
    own = ended(Reason.OUT_OF_MEMORY, "CUDA out of memory", 5, spec=sft)
    assert "a smaller stage.micro_batch, a smaller stage.max_length" in own
    assert "resources.memory" not in own


def test_a_lost_node_names_confirm_dead_once_the_job_is_finishing_and_the_way_there_before() -> None:
    finishing = held(Reason.NODE_LOST, LOST, Phase.FINISHING)
    assert finishing.summary == "Nobody knows whether attempt 1 still runs: its node does not answer."
    assert "`rlhf confirm-dead job-a --attempt 1`" in finishing.todo[-1]
    assert "pause" not in " ".join(finishing.todo)
    running = held(Reason.NODE_LOST, LOST, Phase.RUNNING)
    assert "limits.stall (30 min); `rlhf pause job-a` ends it sooner." in running.todo[1]
    dead = job(Phase.FINISHING, reason=Reason.NODE_LOST, message=LOST, attempt=attempt(confirmed_dead=True))
    assert told(dead).summary == "Attempt 1 was confirmed dead; its outcome is being stored."


def test_a_container_that_cannot_start_is_told_from_a_worker_that_failed() -> None:
    start = 'job-a-a1-0 could not start: exec: "/no/such/program": stat /no/such/program: no such file or directory'
    assert "`command`, or `image`, in the file of WORKER_POD" in ended(Reason.WORKER_ERROR, start, 128, kubernetes=True)
    assert "rlhf logs job-a" in ended(Reason.WORKER_ERROR, "rank 0: FileNotFoundError: no such file or directory", 1)


def test_an_attempt_that_nobody_let_come_to_a_checkpoint_is_told_to_save_sooner() -> None:
    words = "3 attempts in a row made no new checkpoint; the last one: rank 0 was killed by SIGKILL"
    assert "checkpoint.every_steps" in ended(Reason.KILLED, words, 137, fruitless=3)
    assert "checkpoint.every_steps" not in ended(Reason.KILLED, words, 137, fruitless=1)


@pytest.mark.parametrize(
    "words",
    [
        "the store s3://bucket/rlhf does not answer (SlowDown)",
        "the store s3://bucket has not answered for 600 s",
        "not in the store when the time was over: the output model",
    ],
)
def test_whoever_ended_because_the_store_was_away_did_not_run_out_of_memory(words: str) -> None:
    advice = ended(Reason.KILLED, words, 137)
    assert "memory" not in advice
    assert "StoreAway" in advice


def test_the_next_attempts_name_is_free_where_this_ones_was_not() -> None:
    assert "(job-a-a2)" in ended(
        Reason.NAME_CONFLICT, "Job job-a-a1 was not made by this control plane", kubernetes=True
    )


def test_a_time_limit_is_counted_anew_by_a_retry_that_goes_on_where_it_was() -> None:
    limited = spec(limits={"wall_clock": "3h"})
    todo = ended(Reason.DEADLINE_EXCEEDED, "it ran for longer", spec=limited, newest_checkpoint=50)
    assert "With limits.wall_clock (3 h) counted anew, `rlhf retry job-a`: it goes on from step 50." in todo


def test_a_step_of_a_pipeline_is_changed_in_its_file_and_goes_on_with_the_others() -> None:
    about = job(Phase.FAILED, reason=Reason.STALLED, message="it made no step")
    todo = " ".join(told(about, pipeline="pipe-a").todo)
    assert "`rlhf pipeline retry pipe-a`" in todo
    assert "`rlhf pipeline submit FILE`" in todo
    assert "rlhf clone" not in todo


def test_nothing_is_said_twice_and_of_a_traceback_only_what_it_comes_to() -> None:
    message = f"the worker failed a second time: {TRACEBACK}"
    explanation = told(
        job(Phase.FAILED, reason=Reason.WORKER_ERROR, message=message),
        tried=tuple(Tried(n, at(n), Reason.WORKER_ERROR, TRACEBACK, 1) for n in (1, 2)),
        events=(
            Happened(at(1), "LogsLost", "warning", "its logs could not be kept: disk full"),
            Happened(at(2), "AttemptFailed", "error", f"attempt 2: WorkerError: {TRACEBACK}"),
            Happened(at(2), "Failed", "error", message),
        ),
    )
    assert " ".join(explanation.because).count("RuntimeError: odd") == 1
    assert "Traceback" not in " ".join(explanation.because)
    assert "LogsLost, 99 s ago: “its logs could not be kept: disk full”" in explanation.because


def test_only_the_last_attempts_are_told_of() -> None:
    tried = tuple(Tried(n, at(n), Reason.KILLED, f"words {n}", 137) for n in range(1, 8))
    because = told(job(Phase.FAILED, reason=Reason.KILLED, message="words 7"), tried=tried).because
    assert [line for line in because if line.startswith("Attempt")] == [
        "Attempt 5 ended 95 s ago, Killed, exit code 137: “words 5”",
        "Attempt 6 ended 94 s ago, Killed, exit code 137: “words 6”",
        "Attempt 7 ended 93 s ago, Killed, exit code 137.",
    ]


@pytest.mark.parametrize(
    ("fields", "summary"),
    [
        ({"desired": Desired.PAUSE}, "Attempt 1 saves, and is then paused, as its owner asked."),
        ({"desired": Desired.CANCEL}, "Attempt 1 is being cancelled, as its owner asked."),
        (
            {"attempt": attempt(accepted_at=T0, stopping_since=at(90), stop_reason=Reason.STALLED, message="no step")},
            "Attempt 1 is being ended: it made no progress for too long.",
        ),
    ],
)
def test_one_that_is_being_ended_says_for_whom(fields: dict[str, Any], summary: str) -> None:
    assert told(job(**fields)).summary == summary


def test_wishes_that_the_operator_has_not_seen_to_yet_are_told() -> None:
    assert told(job(Phase.FAILED, reason=Reason.KILLED, retry_requested=True)).todo == ()
    assert "goes on in a moment" in told(job(Phase.PAUSED, reason=Reason.PAUSED_BY_USER)).summary
    paused = told(job(Phase.PAUSED, desired=Desired.PAUSE, reason=Reason.PAUSED_BY_USER, newest_checkpoint=7))
    assert paused.todo == ("`rlhf resume job-a`: it goes on from step 7.",)
    starting = told(job(Phase.STARTING, desired=Desired.CANCEL))
    assert starting.summary == "Attempt 1 is ended before it began, and the job cancelled, as its owner asked."
