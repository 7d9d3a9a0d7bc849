"""What workers report, and what becomes of it."""

from typing import Any

import jwt
import pytest

from api.store import reports
from api.store.trouble import Trouble, Unavailable
from api.tokens import Tokens
from tests.api.conftest import Plane, Worker, happenings, paths, points
from worker.contract.protocol import Report

AT = "2026-01-01T00:00:00Z"


def checkpoint(path: str, step: int = 5) -> dict[str, Any]:
    return {"step": step, "path": path, "bytes": 10, "sha256": "0" * 64, "at": AT}


async def curve(plane: Plane, job: str, **params: Any) -> list[tuple[int, int]]:
    """The (attempt, step) of all points that are shown."""
    answer = await plane.http.get(f"/v1/jobs/{job}/metrics", params=params)
    return [(point["attempt"], point["step"]) for point in answer.json()["data"]]


async def test_the_first_report_is_what_accepts_an_attempt(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    answer = await worker.report(activity="loading")
    assert answer.status_code == 200 and answer.json() == {"desired": "run"}
    [attempt] = (await plane.http.get(f"/v1/jobs/{job}/attempts")).json()["data"]
    assert attempt["accepted_at"] and attempt["reported_at"]
    assert (await plane.get(job))["activity"] == "loading"


async def test_the_same_report_twice_changes_nothing(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    for _ in range(2):
        answer = await worker.report(seq=1, metrics=points(1, 2), events=happenings("Loaded"))
        assert answer.status_code == 200
    assert await curve(plane, job) == [(1, 1), (1, 2)]
    events = (await plane.http.get(f"/v1/jobs/{job}/events")).json()["data"]
    assert [event["type"] for event in events] == ["Created", "Loaded"]


async def test_a_point_that_is_there_is_not_doubled_by_a_later_report(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    await worker.report(metrics=points(1, 2))
    await worker.report(metrics=points(2, 3))
    assert await curve(plane, job) == [(1, 1), (1, 2), (1, 3)]


async def test_a_report_may_be_larger_than_people_s_bodies(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    told = [{**event, "message": "€" * 8192} for event in happenings(*["Loaded"] * 50)]
    assert len("€".encode()) * 8192 * 50 > plane.control.settings.max_body
    answer = await worker.report(events=told)
    assert answer.status_code == 200, answer.text


async def test_a_token_of_an_unknown_key_costs_one_read_and_no_more(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    stranger = Worker(
        plane, job, 1, jwt.encode({"job": job, "attempt": 1}, "x" * 32, "HS256", headers={"kid": "key-x"})
    )
    assert (await stranger.report()).status_code == 401

    async def read(_: Tokens) -> None:
        raise AssertionError("it was read again")

    monkeypatch.setattr(Tokens, "_read", read)
    assert (await stranger.report()).status_code == 401
    assert (await worker.report()).status_code == 200


async def test_progress_is_dated_only_when_its_mark_grows(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)

    async def progressed() -> str:
        [attempt] = (await plane.http.get(f"/v1/jobs/{job}/attempts")).json()["data"]
        return str(attempt["progressed_at"])

    await worker.report(progress={"step": 1, "steps": 3, "mark": 1})
    before = await progressed()
    await worker.report(progress={"step": 1, "steps": 3, "mark": 1})
    assert await progressed() == before
    await worker.report(progress={"step": 2, "steps": 3, "mark": 2})
    assert await progressed() > before
    assert (await plane.get(job))["progress"]["step"] == 2


async def test_the_answer_says_what_the_owner_wants(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    await worker.report()
    assert (await plane.http.post(f"/v1/jobs/{job}/pause")).status_code == 200
    assert (await worker.report()).json() == {"desired": "pause"}
    assert (await plane.http.post(f"/v1/jobs/{job}/cancel")).status_code == 200
    assert (await worker.report()).json() == {"desired": "cancel"}


async def test_an_attempt_that_is_not_wanted_any_more_never_starts(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    await plane.http.post(f"/v1/jobs/{job}/pause")
    answer = await worker.report(metrics=points(1))
    assert answer.status_code == 409
    paths(answer)
    assert await curve(plane, job) == []


async def test_an_older_attempt_writes_nothing(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    frozen = await plane.start(job, 1)
    worker = await plane.start(job, 2)
    await worker.report(metrics=points(1))
    answer = await frozen.report(metrics=points(9), events=happenings("Ghost"), progress={"step": 9, "mark": 9})
    assert answer.status_code == 409
    assert await curve(plane, job) == [(2, 1)]
    assert (await plane.get(job))["progress"]["step"] == 0
    assert (await frozen.finish()).status_code == 409


async def test_of_two_processes_of_one_attempt_the_one_that_was_accepted_is_live(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    assert (await worker.report(launcher="a", metrics=points(1))).status_code == 200
    second = Worker(plane, job, 1, worker.token)
    ghost = {"metrics": points(9), "events": happenings("Ghost"), "progress": {"step": 9, "mark": 9}}
    for seq in (1, 9):
        answer = await second.report(seq, launcher="b", **ghost)
        assert answer.status_code == 409
        assert "another process" in answer.json()["detail"]
    assert (await worker.report(launcher="a", metrics=points(2))).status_code == 200
    assert await curve(plane, job) == [(1, 1), (1, 2)]
    # What an operator reads in the spool of an attempt that is over was written by one that was accepted.
    late = Report.model_validate({"seq": 10, "launcher": "b", "activity": "saving", "metrics": points(3)})
    async with plane.control.database.transaction() as session:
        await reports.accept(session, job, 1, late, late=True)
    assert await curve(plane, job) == [(1, 1), (1, 2), (1, 3)]


async def test_a_worker_that_does_not_name_its_process_is_taken_at_its_token_s_word(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    for launcher in (None, "a", None, "b"):
        assert (await worker.report(launcher=launcher)).status_code == 200
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    for launcher in ("a", None, "a"):
        assert (await worker.report(launcher=launcher)).status_code == 200
    assert (await worker.report(launcher="b")).status_code == 409


async def test_an_attempt_that_is_being_ended_is_told_to_stop(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    await worker.report()
    await plane.set(job, phase="finishing")
    assert (await worker.report()).status_code == 409


async def test_a_deleted_job_is_gone_for_its_worker(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    await plane.set(job, phase="failed")
    assert (await plane.http.delete(f"/v1/jobs/{job}")).status_code == 204
    answer = await worker.report()
    assert answer.status_code == 410
    paths(answer)


async def test_a_token_of_another_make_is_refused(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    for token in ("", "x", worker.token[:-3] + "abc", "eyJhbGciOiJub25lIn0.e30."):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = await plane.workers.post("/worker/v1/report", json={"seq": 1, "activity": "loading"}, headers=headers)
        assert answer.status_code == 401
        paths(answer)


async def test_a_malformed_report_does_not_block_those_after_it(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    assert (await worker.report(activity="dancing", metrics=points(1))).status_code == 422
    nan = await plane.workers.post(
        "/worker/v1/report",
        content=b'{"seq": 2, "activity": "training", "metrics": [{"value": NaN}]}',
        headers={"Authorization": f"Bearer {worker.token}", "Content-Type": "application/json"},
    )
    assert nan.status_code == 400
    huge = await worker.report(events=[{"type": "Big", "message": "x" * 2**22, "at": AT}])
    assert huge.status_code == 413
    assert (await worker.report(metrics=points(3))).status_code == 200
    assert await curve(plane, job) == [(1, 3)]


async def test_unknown_fields_of_a_newer_worker_are_ignored(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    assert (await worker.report(version=2, progress={"mark": 1, "mood": "good"}, dreams=[{"text": "new"}])).is_success


async def test_points_past_the_step_that_was_resumed_from_are_superseded(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    first = await plane.start(job, 1)
    await first.report(metrics=points(1, 2, 3, 4))
    second = await plane.start(job, 2)
    await second.report(resumed_from=2, metrics=points(3))
    assert await curve(plane, job) == [(1, 1), (1, 2), (2, 3)]
    assert await curve(plane, job, superseded=True) == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 3)]
    # What the first attempt's spool still held comes later, and is superseded just so; it changes nothing else.
    late = Report.model_validate(
        {
            "seq": 9,
            "activity": "saving",
            "metrics": points(2, 5),
            "events": happenings("Saved"),
            "progress": {"step": 5},
        }
    )
    async with plane.control.database.transaction() as session:
        await reports.accept(session, job, 1, late, late=True)
    assert await curve(plane, job) == [(1, 1), (1, 2), (2, 3)]
    now = await plane.get(job)
    assert (now["activity"], now["progress"]["step"], now["phase"]) == ("training", 0, "starting")


async def test_an_attempt_that_begins_anew_supersedes_all_points_before_it(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    first = await plane.start(job, 1)
    await first.report(metrics=points(0, 1))
    second = await plane.start(job, 2)
    await second.report(resumed_from=0, metrics=points(0))
    assert await curve(plane, job) == [(2, 0)]


async def test_a_checkpoint_is_registered_only_from_the_attempt_s_own_folder(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    for path in (f"jobs/{job}/a2/checkpoints/step-000000005", f"jobs/{job}/a1/../a2/x", "/etc", "files/x"):
        assert (await worker.report(checkpoints=[checkpoint(path)])).status_code == 422
    good = checkpoint(f"jobs/{job}/a1/checkpoints/step-000000005")
    for _ in range(2):
        assert (await worker.report(checkpoints=[good])).status_code == 200
    [shown] = (await plane.http.get(f"/v1/jobs/{job}/checkpoints")).json()["data"]
    assert (shown["step"], shown["attempt"], shown["path"]) == (5, 1, good["path"])


async def test_the_first_finish_of_an_attempt_counts(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    await worker.report()
    assert (await worker.finish("failed", "Diverged", message="loss is NaN")).status_code == 200
    assert (await worker.finish()).status_code == 200
    [attempt] = (await plane.http.get(f"/v1/jobs/{job}/attempts")).json()["data"]
    assert attempt["termination"]["reason"] == "Diverged"
    # The worker's word alone ends nothing.
    assert (await plane.get(job))["phase"] == "starting"


async def test_an_output_outside_the_attempt_s_folder_is_refused(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    await worker.report()
    output = {"kind": "model", "path": "jobs/job-other/a1/outputs/model", "bytes": 1, "sha256": "0" * 64}
    assert (await worker.finish(outputs=[output])).status_code == 422


async def test_events_are_numbered_without_a_gap_whoever_writes_them(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    await worker.report(events=happenings("Loaded", "Compiled"))
    await plane.http.post(f"/v1/jobs/{job}/pause")
    await worker.report(events=happenings("Saved"))
    events = (await plane.http.get(f"/v1/jobs/{job}/events")).json()["data"]
    assert [event["number"] for event in events] == [1, 2, 3, 4, 5]
    assert [event["type"] for event in events] == ["Created", "Loaded", "Compiled", "PauseRequested", "Saved"]


async def test_long_curves_are_thinned_to_what_is_asked_for(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    await worker.report(metrics=points(*range(100)))
    await worker.report(metrics=points(*range(4), name="eval/loss"))
    data = (await plane.http.get(f"/v1/jobs/{job}/metrics", params={"downsample": 5})).json()["data"]
    assert [p["step"] for p in data if p["name"] == "train/loss"] == [0, 99]
    assert [p["step"] for p in data if p["name"] == "eval/loss"] == [0, 1, 2, 3]


async def test_metrics_come_in_pages_and_by_name(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    await worker.report(metrics=points(1, 2, 3) + points(1, 2, name="train/lr"))
    url = f"/v1/jobs/{job}/metrics"
    first = (await plane.http.get(url, params={"limit": 2, "name": "train/loss"})).json()
    rest = (await plane.http.get(url, params={"limit": 2, "name": "train/loss", "after": first["next"]})).json()
    assert [p["step"] for p in first["data"] + rest["data"]] == [1, 2, 3]
    assert rest["next"] is None


async def test_a_report_that_the_database_could_not_take_is_not_counted_as_refused(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await plane.start((await plane.submit())["id"])
    assert (await worker.report(metrics=[{"name": "no name"}])).status_code == 422

    async def away(work: object) -> None:
        raise Unavailable(Trouble.AWAY)

    monkeypatch.setattr(plane.control.database, "put", away)
    assert (await worker.report()).status_code == 503
    figures = plane.control.telemetry.exposed().decode()
    assert 'rlhf_reports_total{outcome="refused"} 1.0' in figures
    assert 'rlhf_reports_total{outcome="failed"} 1.0' in figures


async def test_what_is_refused_again_and_again_is_a_line_a_minute_in_the_log(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await plane.start((await plane.submit())["id"])

    async def away(work: object) -> None:
        raise Unavailable(Trouble.AWAY)

    monkeypatch.setattr(plane.control.database, "put", away)
    for _ in range(5):
        assert (await worker.report()).status_code == 503
    monkeypatch.setattr("api.seldom.QUIET", 0.0)
    assert (await worker.report()).status_code == 503
    said = [record.message for record in caplog.records if record.name == "api.errors"]
    assert len(said) == 2 and said[1] == f"{said[0]} (and 4 times more since that was last said)"
