"""The README's commands run, as they stand, against a real control plane on the README's own port or another."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from client import Client
from tests.client.conftest import ROOT, Shell
from tests.e2e.plane import ControlPlane, free_port, wait_until

README = (ROOT / "README.md").read_text()


def _block(heading: str) -> list[str]:
    """The commands of the first bash block under a heading, without their comments."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.search(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert found, heading
    return [line.split("   #")[0].strip() for line in found[1].splitlines()]


def test_the_first_job_with_curl_as_the_readme_has_it(tmp_path: Path) -> None:
    port = free_port()
    script = "\n".join(_block("The first job")).replace("--data", f"--port {port} --data")
    script = script.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace("rlhf-data", str(tmp_path / "data"))
    script = script.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    # What starts in the background ends with the test; the job is waited for first.
    process = subprocess.Popen(
        ["bash", "-euc", f"{script}\necho; echo server $!; wait"], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert process.stdout is not None
    server = None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("server "):
                server = int(line.split()[1])
                break
        assert '"name":"tiny"' in "".join(lines), lines
        client = Client(f"http://127.0.0.1:{port}")
        job = client.jobs.newest()
        assert client.jobs.wait(job.id, timeout=300).phase == "succeeded"
    finally:
        if server is not None:
            # A server that is stopped leaves its workers running: none may outlive the test.
            with Client(f"http://127.0.0.1:{port}") as last:
                for left in last.jobs.all(phase=["queued", "starting", "running"]):
                    last.jobs.cancel(left.id)
                    last.jobs.wait(left.id, timeout=120)
            os.kill(server, 15)
        process.wait(60)


def test_the_command_line_in_ten_lines_as_the_readme_has_it(plane: ControlPlane, client: Client, rlhf: Shell) -> None:
    commands = _block("The command line")
    assert len(commands) <= 10
    environment = {**rlhf.environment(), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in commands:
        if " JOB" in command:
            paused = client.jobs.create({"stage": {"type": "rehearse", "steps": 2000}})
            wait_until(lambda job=paused.id: client.jobs.get(job).phase == "running", what="its start")  # type: ignore[misc]
            command = command.replace("JOB", paused.id)  # noqa: PLW2901
        done = subprocess.run(
            ["bash", "-euc", command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        if " chat " in command:
            assert done.stdout.strip(), command


@pytest.mark.quick
def test_the_python_of_the_docs_compiles_and_names_what_there_is() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/api.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "docs/api.md", "exec")


def test_the_python_of_the_docs_runs(plane: ControlPlane) -> None:
    found = re.search(r"^```python\n(.*?)^```", (ROOT / "docs/api.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found
    code = found[1].replace("http://127.0.0.1:8000", plane.url)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "Succeeded" in done.stdout
    assert "stage.data is required" in done.stdout


def test_a_trained_model_answers_and_comes_down_whole(
    plane: ControlPlane, client: Client, rlhf: Shell, tmp_path: Path
) -> None:
    name = "colours"
    assert rlhf("submit", "examples/tiny.json", "--set", f"name={name}", "--watch").code == 0
    said = rlhf("chat", name, "--json", stdin="What colour is grass?\nWhat colour is snow?\n")
    assert said.code == 0, said.err
    assert [line["answer"] for line in said.lines] == ["It is green.", "It is white."]
    assert "models/colours@1" in rlhf("models", "show", name).out
    folder = tmp_path / "model"
    assert rlhf("models", "download", name, "--to", str(folder)).code == 0
    model = client.models.find(name)
    assert model.location is not None
    there = {p.name: p.read_bytes() for p in Path(model.location).iterdir()}
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == there
    assert rlhf("models", "show", "no-such-model").code == 2
