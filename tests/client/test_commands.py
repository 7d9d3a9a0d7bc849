"""`rlhf` as a person, a pipe and a program use it."""

import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest

from client import Client
from client.commands.files import own_place
from client.records import File
from tests.client.conftest import RLHF, ROOT, Shell, rehearsal
from tests.e2e.plane import ControlPlane, control_plane, free_port, wait_until


def _write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def _shown(drawn: bytes) -> str:
    """What a terminal was sent, without what it obeys."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode(errors="replace"))


@pytest.mark.quick
def test_a_server_that_is_not_there_is_said_with_what_to_type() -> None:
    port = free_port()
    said = Shell(f"http://127.0.0.1:{port}")("list")
    assert said.code == 3
    assert said.out == ""
    assert f"http://127.0.0.1:{port}" in said.err
    assert f"rlhf serve --port {port}" in said.err
    assert "Traceback" not in said.err


@pytest.mark.quick
def test_a_spec_is_checked_without_a_server_and_every_problem_is_told(tmp_path: Path) -> None:
    rlhf = Shell("http://127.0.0.1:1")
    assert rlhf("spec", "validate", "examples/tiny.json").code == 0
    bad = _write(tmp_path / "bad.yaml", "stage: {type: sft, model: m, data: d, stpes: 3}\ndeepspeed: {offload: cpu}\n")
    said = rlhf("spec", "validate", bad)
    assert said.code == 2
    assert "stage.stpes" in said.err
    assert "did you mean `steps`" in said.err
    assert "deepspeed.offload" in said.err
    whole = rlhf("spec", "validate", "examples/rehearse.yaml", "--set", "stage.steps=7", "--json").json
    assert whole["stage"]["steps"] == 7
    assert rlhf("spec", "validate", str(tmp_path / "none.yaml")).code == 2


def test_submit_prints_the_job_and_list_show_and_events_know_it(rlhf: Shell, tmp_path: Path) -> None:
    spec = _write(tmp_path / "spec.yaml", "name: by-hand\nstage: {type: rehearse, steps: 2, seconds_per_step: 1e-3}\n")
    said = rlhf("submit", spec, "--set", "metadata.team=blue", "--set", "checkpoint.every_steps=1", "--watch")
    assert said.code == 0, said.err
    assert "by-hand succeeded" in said.out
    job = rlhf("list", "--name", "by-hand", "--json").json[0]
    assert job["phase"] == "succeeded"
    assert job["metadata"] == {"team": "blue"}
    listed = rlhf("list", "--metadata", "team=blue")
    assert listed.out.splitlines()[1].split()[:4] == [job["id"], "by-hand", "rehearse", "succeeded"]
    shown = rlhf("show", "by-hand").out
    assert "2/2" in shown
    assert "Succeeded" in shown
    assert rlhf("show", job["id"], "--json").json["id"] == job["id"]
    assert rlhf("events", "by-hand", "--json").json[0]["type"] == "Created"
    assert "Succeeded" in rlhf("events", "by-hand", "-f").out
    assert rlhf("attempts", "by-hand", "--json").json[0]["exit_code"] == 0
    assert rlhf("checkpoints", "by-hand", "--json").json[-1]["step"] == 2


def test_a_spec_comes_from_standard_input_and_a_dry_run_makes_nothing(rlhf: Shell, client: Client) -> None:
    spec = "{name: from-a-pipe, stage: {type: rehearse, steps: 1}}"
    assert rlhf("submit", "-", "--dry-run", stdin=spec).code == 0
    assert list(client.jobs.all(name="from-a-pipe")) == []
    made = rlhf("submit", "-", "--json", stdin=spec).json
    assert [j.id for j in client.jobs.all(name="from-a-pipe")] == [made["id"]]


def test_a_refused_spec_is_told_path_by_path_on_standard_error(rlhf: Shell) -> None:
    said = rlhf("submit", "-", stdin='{"stage": {"type": "rehearse", "steps": 0, "colour": 1}}')
    assert said.code == 2
    assert said.out == ""
    assert "stage.steps" in said.err
    assert "stage.colour" in said.err


def test_watch_ends_with_a_failure_code_and_says_why_when_the_job_fails(rlhf: Shell) -> None:
    spec = '{"name": "bound-to-fail", "stage": {"type": "rehearse", "fault": {"kind": "bad_data", "step": 1}}}'
    said = rlhf("submit", "-", "--watch", stdin=spec)
    assert said.code == 1
    assert "InvalidData" in said.out
    assert "rlhf retry" in said.err


def test_watch_as_json_is_one_line_a_change_and_the_last_is_the_end(rlhf: Shell) -> None:
    said = rlhf("submit", "-", "--watch", "--json", stdin='{"name": "lines", "stage": {"type": "rehearse"}}')
    assert said.code == 0
    assert said.lines[-1]["phase"] == "succeeded"
    assert len({line["id"] for line in said.lines}) == 1


def test_watch_survives_a_restart_of_the_control_plane(tmp_path: Path) -> None:
    with control_plane(tmp_path / "plane") as fragile:
        job = fragile.client.jobs.create(rehearsal("watched", steps=200, seconds=0.05))
        watching = Shell(fragile.url).start("watch", job.id)
        assert watching.stdout is not None
        first = watching.stdout.readline()
        fragile.kill()
        fragile.start()
        out, err = watching.communicate(timeout=120)
    assert watching.returncode == 0, err
    assert "Created" in first
    assert "Created" not in out
    assert "watched succeeded" in out


def test_watch_on_a_terminal_draws_a_bar_and_ctrl_c_leaves_the_job_running(plane: ControlPlane, client: Client) -> None:
    job = client.jobs.create(rehearsal("drawn", steps=2000, seconds=0.02))
    near, far = pty.openpty()
    environment = {**Shell(plane.url).environment(), "TERM": "xterm-256color", "LINES": "30"}
    watching = subprocess.Popen([RLHF, "watch", job.id], stdin=far, stdout=far, stderr=far, cwd=ROOT, env=environment)
    os.close(far)
    drawn = b""
    # The bar with its steps, its share and the time that is left; the loss with its graph.
    wanted = [r" \d+/2000 +\d+% +\d+:\d\d", r"loss \d+\.\d{3} [▁▂▃▄▅▆▇█]{2,}"]
    while not all(re.search(one, _shown(drawn)) for one in wanted):
        drawn += os.read(near, 65536)
    watching.send_signal(signal.SIGINT)
    try:
        while data := os.read(near, 65536):
            drawn += data
    except OSError:  # the other end is closed
        pass
    os.close(near)
    assert watching.wait(timeout=30) == 130
    text = _shown(drawn)
    assert "drawn" in text
    assert "running" in text
    assert "It goes on without you" in text
    assert not client.jobs.get(job.id).final
    client.jobs.cancel(job.id)


def test_a_job_is_paused_resumed_cancelled_retried_cloned_and_removed(rlhf: Shell, client: Client) -> None:
    job = client.jobs.create(rehearsal("driven", steps=500, seconds=0.02))
    wait_until(lambda: (p := client.jobs.get(job.id).progress) and p.step > 2, what="a few steps")
    assert rlhf("pause", "driven").code == 0
    paused = rlhf("watch", "driven")
    assert paused.code == 1
    assert "rlhf resume" in paused.err
    assert rlhf("resume", "driven", "--json").json["desired"] == "run"
    assert rlhf("cancel", "driven").code == 0
    assert client.jobs.wait(job.id, timeout=60).phase == "cancelled"
    refused = rlhf("retry", "driven")
    assert refused.code == 1
    assert "cancelled" in refused.err
    clone = rlhf("clone", "driven", "--set", "stage.steps=1", "--set", "name=clone-of-it", "--json").json
    assert client.jobs.wait(clone["id"], timeout=60).phase == "succeeded"
    assert rlhf("delete", job.id, "--yes").code == 0
    assert rlhf("show", job.id).code == 1


def test_metrics_are_drawn_and_logs_are_printed_as_they_are(rlhf: Shell, client: Client) -> None:
    job = client.jobs.create(rehearsal("drawn-curves", steps=30))
    client.jobs.wait(job.id, timeout=120)
    drawn = rlhf("metrics", job.id)
    assert drawn.code == 0
    assert "train/loss by step" in drawn.out
    points = rlhf("metrics", job.id, "--name", "train/loss", "--json").json
    assert [p["step"] for p in points] == list(range(1, 31))
    logs = "".join(line["text"] for line in rlhf("logs", job.id, "-f", "--json").lines)
    assert logs
    assert rlhf("logs", job.id).out.strip() == logs.strip()
    assert len(rlhf("logs", job.id, "--tail", "1").out.splitlines()) == 1


def test_a_traceback_stays_out_of_the_table_of_attempts(rlhf: Shell, client: Client) -> None:
    fault = {"step": 1, "kind": "error"}
    job = client.jobs.create({**rehearsal("broken-off", fault=fault), "retry": {"max_attempts": 1}})
    assert client.jobs.wait(job.id, timeout=60).phase == "failed"
    assert "Traceback" in rlhf("attempts", job.id, "--json").json[0]["message"]
    [_, *rows] = rlhf("attempts", job.id).out.splitlines()
    assert "RuntimeError: a planned error" in " ".join(" ".join(rows).split())
    assert not any("Traceback" in row or "File " in row for row in rows)


def test_of_a_model_is_shown_what_is_known_alone(rlhf: Shell, client: Client) -> None:
    job = client.jobs.create(rehearsal("shown-model", output=True))
    assert client.jobs.wait(job.id, timeout=60).phase == "succeeded"
    assert client.models.lineage(client.models.find("shown-model").id)["checkpoint"] is None
    shown = rlhf("models", "show", "shown-model").out
    assert "stage" in shown
    assert "None" not in shown


def test_files_go_up_are_listed_and_come_back(rlhf: Shell, tmp_path: Path) -> None:
    up = rlhf("files", "upload", "examples/data/tiny.jsonl", "--json").json
    assert (up["rows"], up["kind"]) == (24, "messages")
    assert up["id"] in rlhf("files", "list").out
    assert "24 of messages" in rlhf("files", "show", f"files/{up['id']}").out
    back = tmp_path / "back.jsonl"
    assert rlhf("files", "download", up["id"], "--to", str(back)).code == 0
    assert back.read_bytes() == (ROOT / "examples/data/tiny.jsonl").read_bytes()
    broken = _write(tmp_path / "broken.jsonl", '{"text": "a"}\nnot json\n')
    refused = rlhf("files", "upload", broken)
    assert refused.code == 2
    assert "line 2" in refused.err
    assert rlhf("files", "delete", up["id"]).code == 0
    name = rlhf("files", "upload", "-q", "examples/data/tiny.jsonl").out.strip()
    assert rlhf("files", "delete", name).code == 0


@pytest.mark.quick
def test_a_download_never_takes_another_s_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def place(name: str) -> str:
        file = {"id": "file-1", "filename": name, "purpose": "train", "bytes": 1, "rows": 1, "sha256": "0" * 64}
        made = File.model_validate({**file, "kind": "text", "created_at": "2026-01-01T00:00:00Z"})
        return str(own_place(made))

    assert place("rows.jsonl") == "rows.jsonl"
    assert place("/etc/rows.jsonl") == "rows.jsonl"
    assert place("..") == "file-1.jsonl"
    assert place(".bashrc") == "bashrc"
    (tmp_path / "rows.jsonl").write_text("mine")
    with pytest.raises(FileExistsError, match=r"rows\.jsonl is there already.*--to"):
        place("rows.jsonl")


def test_a_terminal_obeys_nothing_that_a_log_holds(plane: ControlPlane, client: Client) -> None:
    job = client.jobs.create(rehearsal("hostile", steps=1))
    client.jobs.wait(job.id, timeout=60)
    (log,) = plane.data.glob(f"**/{job.id}*/**/rank-0.log")
    log.write_bytes(b"before\x1b]0;owned\x07after\n")
    near, far = pty.openpty()
    subprocess.run([RLHF, "logs", job.id], stdout=far, env=Shell(plane.url).environment(), timeout=60, check=True)
    os.close(far)
    said = os.read(near, 65536)
    os.close(near)
    assert b"before]0;ownedafter" in said
    assert b"before\x1b]0;owned\x07after" in subprocess.check_output(
        [RLHF, "logs", job.id], env=Shell(plane.url).environment(), timeout=60
    )


def test_an_ambiguous_name_lists_its_candidates_and_changes_nothing(rlhf: Shell, client: Client) -> None:
    ids = [client.jobs.create(rehearsal("twins", steps=300, seconds=0.05)).id for _ in range(2)]
    said = rlhf("cancel", "twins")
    assert said.code == 2
    assert all(job in said.err for job in ids)
    assert all(client.jobs.get(job).desired == "run" for job in ids)
    for job in ids:
        client.jobs.cancel(job)


def test_the_server_may_be_named_before_or_after_the_command(plane: ControlPlane) -> None:
    elsewhere = Shell("http://127.0.0.1:1")
    assert elsewhere("--server", plane.url, "list", "--json").code == 0
    assert elsewhere("list", "--json", "--server", plane.url.removeprefix("http://")).code == 0
    assert elsewhere("list").code == 3


def test_completion_knows_the_jobs(plane: ControlPlane, client: Client) -> None:
    client.jobs.create(rehearsal("completed-by-tab"))
    environment = {**Shell(plane.url).environment(), "_RLHF_COMPLETE": "complete_bash"}
    environment |= {"COMP_WORDS": "rlhf show completed-", "COMP_CWORD": "2"}
    done = subprocess.run([RLHF], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert "completed-by-tab" in done.stdout


def test_two_servers_on_one_folder_is_refused_with_a_sentence(plane: ControlPlane, rlhf: Shell) -> None:
    said = rlhf("serve", "--port", "0", "--data", str(plane.data))
    assert said.code != 0
    assert "in use" in said.err
    assert "Traceback" not in said.err
