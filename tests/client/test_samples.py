"""`rlhf samples`, and the client below it: answers of a real worker, read and followed."""

import os
import pty
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client import Client
from client.commands.samples import shade, shaded, summary
from client.records import Sample
from tests.client.conftest import RLHF, ROOT, Shell, rehearsal
from tests.e2e.plane import ControlPlane, control_plane, wait_until


def sample(**fields: object) -> Sample:
    known = {"id": 1, "step": 3, "index": 0, "attempt": 1, "prompt": "p", "answer": "Yes", "reward": 0.5}
    return Sample.model_validate({**known, "at": datetime(2026, 1, 1, tzinfo=UTC), **fields})


@pytest.fixture(scope="module")
def job(plane: ControlPlane) -> str:
    """A job that is over, with seven answers in each of three steps."""
    made = plane.client.jobs.create(rehearsal("talkative", samples=7))
    assert plane.client.jobs.wait(made.id, timeout=60).phase == "succeeded"
    return made.id


@pytest.mark.quick
def test_tokens_are_shaded_by_how_far_they_are_from_the_reference() -> None:
    assert [shade(nats) for nats in (0.0, 0.09, -0.09)] == ["", "", ""]
    assert len({shade(nats) for nats in (0.0, 0.1, 0.5, 1.0, 2.0, -0.1, -0.5, -1.0)}) == 8
    assert shade(50.0) == shade(2.0)
    text = shaded(sample(answer="Yes, I do", tokens=["Yes", ",", " I"], kl=[0.0, 3.0, -0.6]))
    assert text.plain == "Yes, I do"
    assert [(text.plain[span.start : span.end], span.style) for span in text.spans] == [
        (",", shade(3.0)),
        (" I", shade(-0.6)),
    ]


@pytest.mark.quick
def test_an_answer_without_tokens_is_shown_as_it_is_and_nothing_in_it_is_obeyed() -> None:
    assert shaded(sample(answer="[red]\x1b[2Jgone")).plain == "[red][2Jgone"
    assert shaded(sample(answer="no\x07", tokens=["no\x07", "<end>\x1b"], kl=[0, 0])).plain == "no<end>"


@pytest.mark.quick
def test_a_step_is_summed_up_in_one_line() -> None:
    of_step = [sample(reward=1.0, kl=[0.5, 0.5]), sample(reward=-0.5, kl=[], ended=False)]
    assert summary(of_step) == (
        "step 3 · 2 answers · reward 0.250 (-0.500 to 1.000) · KL 0.50 nats · 50% ended by themselves"
    )


def test_the_client_reads_samples_by_step_and_newest_first_and_follows_them(client: Client, job: str) -> None:
    everything = client.jobs.samples(job)
    assert [(s.step, s.index) for s in everything] == [(step, index) for step in (1, 2, 3) for index in range(7)]
    assert client.jobs.samples(job, newest_first=True, limit=2) == everything[:-3:-1]
    assert client.jobs.samples(job, step=2) == everything[7:14]
    assert client.jobs.samples(job, after=everything[-3].id) == everything[-2:]
    assert client.jobs.samples(job, attempt=2) == []
    assert list(client.jobs.follow_samples(job)) == everything
    assert list(client.jobs.follow_samples(job, after=everything[4].id)) == everything[5:]
    assert list(client.jobs.follow_samples(job, step=3)) == everything[14:]
    one = everything[0]
    assert len(one.tokens) == len(one.kl) > 0
    assert one.reward == pytest.approx(one.terms["sentiment"] - 0.1 * one.terms["length"])


def test_samples_shows_the_newest_iteration_or_the_one_that_is_named(rlhf: Shell, client: Client, job: str) -> None:
    said = rlhf("samples", job)
    assert said.code == 0, said.err
    newest = client.jobs.samples(job, step=3)
    assert "step 3 · 7 answers" in said.out
    assert newest[0].prompt in said.out
    assert f"reward {newest[0].reward:.3f}" in said.out
    assert newest[0].answer in said.out
    assert "#4" in said.out
    assert "#5" not in said.out
    assert "2 more" in said.err
    assert "#6" in rlhf("samples", job, "--step", "1", "--limit", "7").out
    assert [s["step"] for s in rlhf("samples", job, "--step", "2", "--json").json] == [2] * 7
    none = rlhf("samples", job, "--step", "9")
    assert (none.code, none.out) == (0, "")
    assert "no samples of step 9" in none.err


def test_a_job_that_shows_no_answers_says_so(rlhf: Shell, client: Client) -> None:
    silent = client.jobs.create(rehearsal("silent"))
    client.jobs.wait(silent.id, timeout=60)
    said = rlhf("samples", silent.id)
    assert (said.code, said.out) == (0, "")
    assert "silent has no samples yet" in said.err
    assert rlhf("samples", silent.id, "--json").json == []
    assert rlhf("samples", silent.id, "--watch").code == 0


def test_watch_follows_samples_from_the_newest_iteration_to_the_end(tmp_path: Path) -> None:
    with control_plane(tmp_path / "plane") as fragile:
        client = fragile.client
        job = client.jobs.create(rehearsal("followed", steps=60, seconds=0.1, samples=3))
        wait_until(lambda: len({s.step for s in client.jobs.samples(job.id)}) > 2, what="a few iterations")
        seen = max(s.step for s in client.jobs.samples(job.id))
        lines = Shell(fragile.url).start("samples", job.id, "--watch", "--json")
        people = Shell(fragile.url).start("samples", job.id, "--watch", "-n", "1")
        assert lines.stdout is not None
        assert people.stdout is not None
        first = Sample.model_validate_json(lines.stdout.readline())
        assert (first.step >= seen, first.index) == (True, 0)
        begun = people.stdout.readline()
        assert "step" in begun
        fragile.kill()
        fragile.start()
        # Not `communicate`, which passes over what came in one piece with the line that was read.
        rest, out = lines.stdout.read(), people.stdout.read()
        assert (lines.wait(60), people.wait(60)) == (0, 0), lines.stderr.read() if lines.stderr else ""
        after = [Sample.model_validate_json(line) for line in rest.splitlines()]
        whole = client.jobs.samples(job.id)
    assert [first, *after] == [s for s in whole if s.step >= first.step]
    assert {s.step for s in whole} == set(range(1, 61))
    # On a busy machine the last step was made before anybody watched.
    assert "step 60" in begun + out
    assert "#0" in out
    assert "#1" not in out


def test_on_a_terminal_answers_are_shaded(plane: ControlPlane, job: str) -> None:
    near, far = pty.openpty()
    environment = {**Shell(plane.url).environment(), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    environment.pop("NO_COLOR")
    shown = subprocess.Popen([RLHF, "samples", job], stdin=far, stdout=far, stderr=far, cwd=ROOT, env=environment)
    os.close(far)
    drawn = b""
    while True:
        try:
            piece = os.read(near, 65536)
        except OSError:
            break
        if not piece:
            break
        drawn += piece
    os.close(near)
    assert shown.wait(60) == 0
    assert b"nats a token" in drawn
    assert b"\x1b[30;48;2;" in drawn
