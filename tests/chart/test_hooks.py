"""What `helm test` and `helm uninstall` run, against a real control plane with keys."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import Client
from tests.chart.rendering import CHART, chart, containers
from tests.e2e.plane import ControlPlane, free_port, wait_until

KEY = "rlhf_" + "k" * 43


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "key").write_text(KEY)
    running = ControlPlane(folder / "data", AUTH="keys", ADMIN_KEY_FILE=str(folder / "key"), LOCAL_JOBS="4")
    running.client = Client(running.url, key=KEY)
    try:
        yield running.start()
    finally:
        running.close()


def script(word: str, url: str, key: str = KEY) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "RLHF_SERVER": url, "RLHF_API_KEY": key}
    text = (CHART / "files" / "jobs.py").read_text()
    # Isolated, as in the API's image: Python's own library alone.
    return subprocess.run(
        [sys.executable, "-I", "-c", text, word],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_the_tiny_job_is_followed_to_its_end(plane: ControlPlane) -> None:
    done = script("rehearse", plane.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(": succeeded")
    assert plane.client.jobs.get(done.stdout.partition(":")[0]).name == "helm-test"


def test_the_jobs_of_all_projects_are_stopped(plane: ControlPlane) -> None:
    endless = {"stage": {"type": "rehearse", "steps": 100_000, "seconds_per_step": 0.1}}
    plane.client.projects.create("other")
    there = Client(plane.url, key=KEY, project="other")
    jobs = [(client, client.jobs.create(endless).id) for client in (plane.client, plane.client, there)]
    paused = plane.client.jobs.create(endless).id
    plane.client.jobs.pause(paused)
    wait_until(lambda: plane.client.jobs.get(paused).phase == "paused", what="a paused job")
    wait_until(lambda: there.jobs.get(jobs[2][1]).phase == "running", what="a job that runs")
    done = script("stop", plane.url)
    assert done.returncode == 0, done.stderr
    assert [client.jobs.get(job).phase for client, job in jobs] == ["cancelled"] * 3
    # It runs nowhere, and may go on some day.
    assert plane.client.jobs.get(paused).phase == "paused"
    assert script("stop", plane.url).stdout == "jobs that are not over: 0\n"


def test_a_key_that_is_not_good_is_told(plane: ControlPlane) -> None:
    done = script("stop", plane.url, key="rlhf_" + "x" * 43)
    assert done.returncode == 1
    assert "was refused with 401" in done.stderr


def test_the_hooks_of_the_chart_have_no_other_script() -> None:
    text = (CHART / "files" / "jobs.py").read_text()
    hooks = [each for made in chart() for each in containers(made) if each["name"] == "jobs"]
    assert sorted(each["args"][1] for each in hooks) == ["rehearse", "stop"]
    assert all(each["args"][0].strip() == text.strip() for each in hooks)


def test_an_api_that_is_away_is_told(tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    text = (CHART / "files" / "jobs.py").read_text().replace("PATIENCE = 60.0", "PATIENCE = 0.0")
    done = subprocess.run(
        [sys.executable, "-I", "-c", text, "stop"],
        env={"RLHF_SERVER": nobody, "RLHF_API_KEY": KEY}, cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"the API at {nobody} does not answer: ")
