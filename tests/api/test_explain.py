"""Why a job is where it is, from what the database holds; and an admin's word that an attempt is dead."""

from datetime import timedelta
from typing import Any

import pytest

from api.domain.job import Phase, Reason
from api.store import operations_leader
from api.store.database import utcnow
from tests.api.conftest import Plane, happenings, paths

LOST = "node-2 does not answer, and nobody knows whether it still runs there"


async def explained(plane: Plane, job: str) -> dict[str, Any]:
    answer = await plane.http.get(f"/v1/jobs/{job}/explain")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def lead(plane: Plane) -> None:
    assert await operations_leader.acquire(plane.control.database, "an operator", 300.0)


async def confirm(plane: Plane, job: str, number: int = 1) -> Any:
    return await plane.http.post(f"/v1/jobs/{job}/attempts/{number}/confirm-dead")


async def kinds(plane: Plane, job: str) -> list[tuple[str, str]]:
    events = (await plane.http.get(f"/v1/jobs/{job}/events")).json()["data"]
    return [(event["type"], event["source"]) for event in events]


async def finishing(plane: Plane) -> tuple[str, Any]:
    """A job whose attempt reported, and whose node is lost since."""
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    await worker.report()
    await plane.set(job, phase="finishing", reason="NodeLost", message=LOST)
    return job, worker


async def test_a_job_that_waits_for_a_place_says_how_many_are_ahead(plane: Plane) -> None:
    await lead(plane)
    first, second, third = [(await plane.submit())["id"] for _ in range(3)]
    await plane.start(first)
    explanation = await explained(plane, third)
    assert explanation["summary"] == "It waits for a place: 1 of 1 taken, 1 job is ahead."
    assert (explanation["job"], explanation["phase"], explanation["reason"]) == (third, "queued", None)
    assert "it is the next" in (await explained(plane, second))["summary"]
    await plane.http.patch(f"/v1/jobs/{third}", json={"priority": 1})
    assert "it is the next" in (await explained(plane, third))["summary"]


async def test_without_an_operator_that_is_said_first(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    assert "No operator is at work" in (await explained(plane, job))["because"][0]
    await lead(plane)
    assert "No operator" not in " ".join((await explained(plane, job))["because"])


async def test_a_job_that_reports_is_well(plane: Plane) -> None:
    await lead(plane)
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    await worker.report(progress={"step": 2, "steps": 3, "mark": 2})
    await plane.set(job, phase="running")
    explanation = await explained(plane, job)
    assert explanation["summary"] == "All is well: attempt 1 runs, training, at step 2 of 3."
    assert any(line.startswith("It last reported") for line in explanation["because"])
    assert explanation["todo"] == []


async def test_a_failure_is_told_with_its_attempts_their_words_and_its_warnings(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    for number in (1, 2):
        worker = await plane.start(job, number)
        warning = {**happenings("DiskSlow")[0], "level": "warning", "message": f"slow in attempt {number}"}
        await worker.report(events=[warning, *happenings("Loaded")])
        ended = {"ended_at": utcnow(), "reason": "WorkerError", "message": f"ValueError: odd {number}", "exit_code": 1}
        await plane.set_attempt(job, number, **ended)
    said = "the worker failed a second time: ValueError: odd 2"
    await plane.set(job, phase="failed", reason="WorkerError", message=said)
    explanation = await explained(plane, job)
    assert explanation["because"][0] == f"WorkerError: “{said}”"
    facts = "\n".join(explanation["because"])
    assert "Attempt 1 ended" in facts and "exit code 1: “ValueError: odd 1”" in facts
    assert "slow in attempt 2" in facts
    assert "slow in attempt 1" not in facts and "Loaded" not in facts
    assert any(f"rlhf retry {job}" in line for line in explanation["todo"])


async def test_a_back_off_says_when_the_next_attempt_starts(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    await plane.start(job)
    await plane.set_attempt(job, 1, ended_at=utcnow(), reason="Killed", message="words", exit_code=137, cleaned=True)
    later = utcnow() + timedelta(minutes=5)
    await plane.set(job, phase="queued", reason="BackOff", message="Killed: words", not_before=later)
    explanation = await explained(plane, job)
    assert explanation["summary"].startswith(
        "Attempt 1 ended early: it was killed from outside; the next one starts in "
    )


@pytest.mark.parametrize("phase", Phase)
async def test_there_is_an_answer_in_every_phase_and_with_every_reason(plane: Plane, phase: Phase) -> None:
    job = (await plane.submit())["id"]
    await plane.start(job)
    for reason in [None, *Reason]:
        await plane.set(job, phase=phase, reason=reason, message="words")
        assert (await explained(plane, job))["summary"]


async def test_what_is_not_there_is_not_explained(plane: Plane) -> None:
    answer = await plane.http.get("/v1/jobs/job-nothing/explain")
    assert answer.status_code == 404
    paths(answer)
    job = (await plane.submit())["id"]
    await plane.set(job, phase="cancelled")
    await plane.http.delete(f"/v1/jobs/{job}")
    assert (await plane.http.get(f"/v1/jobs/{job}/explain")).status_code == 404


async def test_an_attempt_that_is_being_ended_is_confirmed_dead_once_and_the_operator_is_woken(plane: Plane) -> None:
    job, _ = await finishing(plane)
    assert "confirm-dead" in " ".join((await explained(plane, job))["todo"])
    await plane.control.wakeups.wait(0)
    for _ in range(2):
        answer = await confirm(plane, job)
        assert answer.status_code == 200, answer.text
        assert (answer.json()["number"], answer.json()["confirmed_dead"]) == (1, True)
    assert job in await plane.control.wakeups.wait(5)
    assert (await kinds(plane, job)).count(("ConfirmedDead", "api")) == 1
    assert "was confirmed dead" in (await explained(plane, job))["summary"]
    # The phase is the operator's to change.
    assert (await plane.get(job))["phase"] == "finishing"


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.FINISHING])
async def test_an_attempt_that_may_still_report_is_never_declared_dead(plane: Plane, phase: Phase) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    assert (await worker.report()).status_code == 200
    await plane.set(job, phase=phase)
    answer = await confirm(plane, job)
    assert answer.status_code == 409
    assert phase in answer.json()["detail"]
    paths(answer)
    assert "ConfirmedDead" not in [kind for kind, _ in await kinds(plane, job)]
    if phase is Phase.RUNNING:
        assert (await worker.report()).status_code == 200


async def test_a_wish_to_stop_does_not_make_a_reporting_attempt_dead(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    await worker.report()
    await plane.set(job, phase="running")
    await plane.http.post(f"/v1/jobs/{job}/pause")
    await plane.set_attempt(job, 1, stopping_since=utcnow())
    assert (await confirm(plane, job)).status_code == 409
    assert (await worker.report()).status_code == 200


async def test_only_the_current_attempt_is_confirmed_dead(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    assert (await confirm(plane, job)).status_code == 404
    await plane.start(job)
    await plane.set_attempt(job, 1, ended_at=utcnow())
    await plane.start(job, 2)
    await plane.set(job, phase="finishing")
    answer = await confirm(plane, job, 1)
    assert answer.status_code == 409 and "attempt 1 is over" in answer.json()["detail"]
    assert (await confirm(plane, job, 3)).status_code == 404
    assert (await confirm(plane, job, 2)).status_code == 200
    # Said before, and so not refused, though the job has moved on.
    await plane.set_attempt(job, 2, ended_at=utcnow())
    await plane.set(job, phase="queued")
    assert (await confirm(plane, job, 2)).status_code == 200
    assert (await plane.http.post(f"/v1/jobs/{job}/attempts/0/confirm-dead")).status_code == 422


async def test_one_that_was_confirmed_dead_is_refused_whatever_it_says(plane: Plane) -> None:
    job, worker = await finishing(plane)
    await confirm(plane, job)
    # Also where the job's phase alone would let it speak.
    for phase in ("finishing", "running", "starting"):
        await plane.set(job, phase=phase)
        assert (await worker.report()).status_code == 409
        assert (await worker.finish()).status_code == 409
    [attempt] = (await plane.http.get(f"/v1/jobs/{job}/attempts")).json()["data"]
    assert attempt["termination"] is None
