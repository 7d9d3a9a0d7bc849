"""`rlhf explain` and `rlhf confirm-dead`, as a person reads them, and a program."""

import asyncio
import io
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from api.settings import Settings, load
from client import Client
from client.commands.explain import picture
from client.records import Explanation, Job
from tests.api.conftest import Plane, plane_on
from tests.client.conftest import RLHF, ROOT, Shell, rehearsal

LOST = "node-2 does not answer, and nobody knows whether it still runs there"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a control plane without an operator: what the cluster says is written by the test."""
    return load(data=tmp_path / "data", port=0)


async def lost(plane: Plane, phase: str = "finishing") -> str:
    """A job whose node does not answer."""
    job = (await plane.submit({"name": "far-away", "stage": {"type": "rehearse"}}))["id"]
    await (await plane.start(job)).report()
    await plane.set(job, phase=phase, reason="NodeLost", message=LOST)
    return str(job)


def test_a_job_that_failed_is_explained_with_the_commands_to_type(rlhf: Shell, client: Client) -> None:
    job = client.jobs.create(rehearsal("explained", fault={"kind": "bad_data", "step": 1}))
    assert client.jobs.wait(job.id, timeout=60).phase == "failed"
    said = rlhf("explain", "explained")
    assert said.code == 0, said.err
    first, summary, *_ = said.out.splitlines()
    assert first.split() == ["explained", job.id, "failed", "InvalidData"]
    assert summary.strip() == "It failed: its data cannot be used."
    assert (
        said.out.index("Because") < said.out.index("“") < said.out.index("What to do") < said.out.index("`rlhf clone")
    )
    told = rlhf("explain", job.id, "--json").json
    assert (told["job"], told["reason"]) == (job.id, "InvalidData")
    assert client.jobs.explain(job.id).todo == told["todo"]


def test_one_that_succeeded_is_well_and_no_name_means_the_newest(rlhf: Shell, client: Client) -> None:
    job = client.jobs.create(rehearsal("well"))
    assert client.jobs.wait(job.id, timeout=60).phase == "succeeded"
    said = rlhf("explain")
    assert "the newest job: well" in said.err
    assert "All is well: it succeeded." in said.out
    assert rlhf("explain", "nobody").code == 2


@pytest.mark.quick
def test_long_sentences_are_wrapped_beside_their_mark_and_others_words_do_nothing() -> None:
    made = {"id": "job-1", "name": "a", "stage": "sft", "phase": "starting", "created_at": "2026-01-01T00:00:00Z"}
    words = "Unschedulable: “" + "0/3 nodes are available: [bold]3[/] Insufficient cpu; " * 3 + "\x1b[2J”"
    explanation = Explanation(job="job-1", phase="starting", summary="It waits.", because=[words], todo=["`rlhf x`."])
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(picture(Job.model_validate(made), explanation))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 60
    assert "[bold]3[/]" in shown
    assert "\x1b" not in shown
    [mark, *wrapped] = shown.split("Because")[1].split("What to do")[0].strip("\n").splitlines()
    assert mark.startswith("· Unschedulable")
    assert all(line.startswith("  ") for line in wrapped if line.strip())


async def test_an_attempt_is_declared_dead_after_a_question_that_says_what_is_at_stake(settings: Settings) -> None:
    async with plane_on(settings) as plane:
        rlhf, job = Shell(str(plane.http.base_url)), await lost(plane)
        refused = await asyncio.to_thread(rlhf, "confirm-dead", "far-away", stdin="n\n")
        assert refused.code == 1
        asked = " ".join(refused.err.split())
        assert "two attempts run at the same time" in asked
        assert "refuses the reports of the old one" in asked
        assert f"Attempt 1 of far-away ({job})" in asked
        [attempt] = (await plane.http.get(f"/v1/jobs/{job}/attempts")).json()["data"]
        assert attempt["confirmed_dead"] is False
        said = await asyncio.to_thread(rlhf, "confirm-dead", "far-away", stdin="y\n")
        assert (said.code, said.out.strip()) == (0, f"✓ far-away ({job}): attempt 1 is taken for dead.")
        again = await asyncio.to_thread(rlhf, "confirm-dead", job, "--attempt", "1", "--yes", "--json")
        assert again.json["confirmed_dead"] is True
        assert again.err == ""


async def test_a_program_that_was_not_told_to_go_on_is_asked_too(settings: Settings) -> None:
    async with plane_on(settings) as plane:
        rlhf, job = Shell(str(plane.http.base_url)), await lost(plane)
        assert (await asyncio.to_thread(rlhf, "confirm-dead", job, "--json")).code == 1


async def test_one_that_may_still_report_is_not_declared_dead(settings: Settings) -> None:
    async with plane_on(settings) as plane:
        rlhf, job = Shell(str(plane.http.base_url)), await lost(plane, "running")
        said = await asyncio.to_thread(rlhf, "confirm-dead", job, "--yes")
        assert said.code == 1
        assert "attempt 1 may still report: the job is running" in said.err
        other = (await plane.submit())["id"]
        none = await asyncio.to_thread(rlhf, "confirm-dead", other, "--yes")
        assert none.code == 2
        assert "has no attempt yet" in none.err


async def test_on_a_terminal_commands_and_quotations_stand_out(settings: Settings) -> None:
    async with plane_on(settings) as plane:
        job = await lost(plane)
        environment = {**Shell(str(plane.http.base_url)).environment(), "TERM": "xterm-256color"}
        del environment["NO_COLOR"]
        near, far = pty.openpty()
        command = [RLHF, "explain", job]
        await asyncio.to_thread(subprocess.run, command, stdout=far, env=environment, cwd=ROOT, timeout=60, check=True)
        os.close(far)
        drawn = os.read(near, 65536).decode()
        os.close(near)
    assert re.search(r"\x1b\[1;36m`rlhf", drawn)
    assert re.search(r"\x1b\[33m“node-2", drawn)
