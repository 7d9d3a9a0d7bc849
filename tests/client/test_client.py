"""The Python client on its own, against a real control plane."""

import socket
import threading
from pathlib import Path
from typing import IO

import httpx
import pytest

from client import Client, Problem, Unreachable
from client.problems import Ambiguous
from tests.client.conftest import rehearsal
from tests.e2e.plane import ControlPlane, free_port, wait_until
from worker.contract.check import parse_spec


def test_a_job_is_made_followed_and_read(client: Client) -> None:
    phases = []
    job = client.jobs.create(rehearsal("read-me", steps=5))
    over = client.jobs.wait(job.id, timeout=120, every=0.05, seen=lambda j: phases.append(j.phase))
    assert over.phase == "succeeded"
    assert over.progress is not None
    assert (over.progress.step, over.progress.steps) == (5, 5)
    assert phases[-1] == "succeeded"
    assert [a.exit_code for a in client.jobs.attempts(job.id)] == [0]
    assert [c.step for c in client.jobs.checkpoints(job.id)] == [5]
    events = client.jobs.events(job.id)
    assert [e.number for e in events] == list(range(1, len(events) + 1))
    assert client.jobs.events(job.id, after=events[-2].number) == events[-1:]


def test_a_spec_of_the_contract_is_taken_as_plain_data_is(client: Client) -> None:
    spec = parse_spec(rehearsal("typed") | {"limits": {"wall_clock": "1h"}})
    assert client.jobs.create(spec).spec["limits"]["wall_clock"] == 3600


def test_the_same_key_makes_one_job_and_other_keys_make_others(client: Client) -> None:
    spec = rehearsal("keyed")
    first = client.jobs.create(spec, key="this-key")
    assert client.jobs.create(spec, key="this-key").id == first.id
    assert client.jobs.create(spec).id != first.id
    with pytest.raises(Problem) as caught:
        client.jobs.create(rehearsal("other"), key="this-key")
    assert caught.value.status == 422


class _Gate:
    """Takes connections for the server; breaks the first `broken` of them after the request, before the answer."""

    def __init__(self, target: int, broken: int):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.target, self.broken, self.seen = target, broken, 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            near, _ = self.listener.accept()
            self.seen += 1
            far = socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self._carry, args=(near, far, None), daemon=True).start()
            limit = 0 if self.seen <= self.broken else None
            threading.Thread(target=self._carry, args=(far, near, limit), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        try:
            while data := source.recv(65536):
                if limit == 0:
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def test_a_create_whose_answer_is_lost_is_repeated_and_makes_one_job(plane: ControlPlane, client: Client) -> None:
    gate = _Gate(plane.port, broken=2)
    with Client(f"http://127.0.0.1:{gate.port}") as broken:
        job = broken.jobs.create(rehearsal("lost-answer"))
    assert gate.seen == 3
    assert [j.id for j in client.jobs.all(name="lost-answer")] == [job.id]


def test_an_upload_whose_answer_is_lost_is_repeated_and_makes_one_file(
    plane: ControlPlane, client: Client, tmp_path: Path
) -> None:
    rows = tmp_path / "lost.jsonl"
    rows.write_text('{"text": "a"}\n' * 10)
    gate = _Gate(plane.port, broken=1)
    with Client(f"http://127.0.0.1:{gate.port}") as broken:
        file = broken.files.upload(rows)
    assert [f.id for f in client.files.all() if f.filename == "lost.jsonl"] == [file.id]


def test_nobody_at_the_address_is_said_with_the_address() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url, patience=0) as nobody, pytest.raises(Unreachable, match=url):
        next(nobody.jobs.all())


def test_a_refusal_carries_every_path_and_sentence(client: Client) -> None:
    with pytest.raises(Problem) as caught:
        client.jobs.create({"stage": {"type": "rehearse", "stpes": 3, "steps": 0}})
    assert caught.value.status == 422
    found = {f.path: f.message for f in caught.value.fields}
    assert "did you mean `steps`" in found["stage.stpes"]
    assert "stage.steps" in found


def test_a_page_that_is_no_problem_document_is_a_problem_too() -> None:
    problem = Problem.of(httpx.Response(502, text="<html>Bad Gateway</html>"))
    assert (problem.status, problem.title) == (502, "Bad Gateway")
    assert "<html>" in problem.detail


def test_lists_are_read_page_by_page_to_their_end(client: Client) -> None:
    made = [client.jobs.create(rehearsal("paged") | {"metadata": {"set": "pages"}}).id for _ in range(5)]
    pages = client.jobs._transport.pages("/v1/jobs", page=2, **{"metadata.set": "pages"})
    assert [entry["id"] for entry in pages] == made[::-1]
    assert [j.id for j in client.jobs.all(metadata={"set": "pages"}, limit=3)] == made[:1:-1]


def test_a_job_is_found_by_what_a_person_types(client: Client) -> None:
    job = client.jobs.create(rehearsal("find-me-here"))
    for text in (job.id, job.id[:12], job.id.removeprefix("job-")[:8], "find-me-here", "find-me"):
        assert client.jobs.find(text).id == job.id
    with pytest.raises(Ambiguous, match="none begins so"):
        client.jobs.find("no-such-job")
    twin = client.jobs.create(rehearsal("find-me-here"))
    with pytest.raises(Ambiguous) as caught:
        client.jobs.find("find-me-here")
    assert job.id in str(caught.value)
    assert twin.id in str(caught.value)
    with pytest.raises(Problem):
        client.jobs.find("job-aaaaaaaaaaaa")


def test_a_job_pauses_resumes_and_is_not_taken_for_over_in_between(client: Client) -> None:
    job = client.jobs.create(rehearsal("paused", steps=200, seconds=0.05))
    wait_until(lambda: (p := client.jobs.get(job.id).progress) and p.step > 5, what="a few steps")
    client.jobs.pause(job.id)
    rest = client.jobs.wait(job.id, timeout=60)
    assert (rest.phase, rest.reason) == ("paused", "PausedByUser")
    assert not client.jobs.resume(job.id).resting
    client.jobs.cancel(job.id)
    assert client.jobs.wait(job.id, timeout=60).phase == "cancelled"
    with pytest.raises(Problem) as caught:
        client.jobs.resume(job.id)
    assert caught.value.status == 409


def test_a_change_goes_only_onto_what_was_read(client: Client) -> None:
    job = client.jobs.create(rehearsal("changed"))
    changed = client.jobs.change(job.id, metadata={"a": "1"}, generation=job.generation)
    assert changed.metadata == {"a": "1"}
    with pytest.raises(Problem) as caught:
        client.jobs.change(job.id, priority=3, generation=job.generation)
    assert caught.value.status == 412


def test_a_clone_differs_only_where_it_is_told_to(client: Client) -> None:
    job = client.jobs.create(rehearsal("original"))
    clone = client.jobs.clone(job.id, {"stage": {"steps": 7}, "name": "copy"})
    assert (clone.name, clone.cloned_from, clone.spec["stage"]["steps"]) == ("copy", job.id, 7)
    assert clone.spec["stage"]["seconds_per_step"] == job.spec["stage"]["seconds_per_step"]


def test_a_job_that_is_over_can_be_removed_and_one_that_runs_cannot(client: Client) -> None:
    job = client.jobs.create(rehearsal("removed", steps=500, seconds=0.05))
    with pytest.raises(Problem) as caught:
        client.jobs.delete(job.id)
    assert caught.value.status == 409
    client.jobs.cancel(job.id)
    client.jobs.wait(job.id, timeout=60)
    client.jobs.delete(job.id)
    with pytest.raises(Problem) as caught:
        client.jobs.get(job.id)
    assert caught.value.status == 404


def test_a_file_comes_back_as_it_went(client: Client, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "ä"}\n' * 1000, encoding="utf-8")
    file = client.files.upload(rows)
    assert (file.rows, file.kind, file.bytes) == (1000, "text", rows.stat().st_size)
    assert client.files.download(file.id, tmp_path / "back.jsonl").read_bytes() == rows.read_bytes()
    client.files.delete(file.id)
    with pytest.raises(Problem):
        client.files.download(file.id, tmp_path / "gone.jsonl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.jsonl", "rows.jsonl"]


def test_an_upload_leaves_nothing_open(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "open.jsonl"
    path.write_text('{"text": "a row"}\n')
    opened: list[IO[bytes]] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: opened.append(real(self, mode)) or opened[-1])
    client.files.upload(path)
    assert [file.closed for file in opened] == [True]


def test_a_broken_line_is_named_and_nothing_is_kept(client: Client, tmp_path: Path) -> None:
    before = len(list(client.files.all()))
    rows = tmp_path / "broken.jsonl"
    rows.write_text('{"text": "a"}\n' * 6 + "{broken\n" + '{"text": "a"}\n')
    with pytest.raises(Problem, match="line 7"):
        client.files.upload(rows)
    assert len(list(client.files.all())) == before
