"""What the operator does with what attempts leave in a bucket; no answer of it proves anything."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from api.bucket import BucketStore
from api.operator.collect import _untold, check_outputs, log_ends
from tests.api.conftest import write_model
from tests.storage.server import Answer, Line
from worker.contract.manifest import MANIFEST, describe
from worker.contract.protocol import Output
from worker.storage import Away

JOB = "job-abcdefghijkl"
OUTPUT = f"jobs/{JOB}/a1/outputs/model"


@pytest.fixture
def store(s3_line: Line, monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketStore]:
    for name, value in s3_line.s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("api.bucket._PATIENCE", 0.1)
    made = BucketStore(f"s3://{s3_line.s3.bucket()}")
    yield made
    made.close()


def put(store: BucketStore, folder: Path, path: str) -> str:
    described = describe(folder)
    (folder / MANIFEST).write_bytes(described.encode())
    store.objects.put_folder(folder, path)
    return described.sha256


def paths(store: BucketStore) -> list[str]:
    return sorted(entry.path for entry in store.objects.list())


def test_outputs_are_looked_at_and_a_bucket_that_is_away_says_nothing_against_them(
    store: BucketStore, s3_line: Line, tmp_path: Path
) -> None:
    output = Output(kind="model", path=OUTPUT, bytes=1, sha256=put(store, write_model(tmp_path / "m"), OUTPUT))
    assert check_outputs(store, JOB, 1, [output]) is None
    assert "own folder" in str(check_outputs(store, JOB, 2, [output]))
    for path in (f"jobs/{JOB}/a1/outputs", f"jobs/{JOB}/a1/outputs//model", f"jobs/{JOB}/a1/outputs/m\x01"):
        assert "own folder" in str(check_outputs(store, JOB, 1, [output.model_copy(update={"path": path})]))
    assert "the hash that" in str(check_outputs(store, JOB, 1, [output.model_copy(update={"sha256": "0" * 64})]))
    s3_line.before = lambda _: Answer(503, "SlowDown")
    with pytest.raises(Away):
        check_outputs(store, JOB, 1, [output])
    s3_line.before = lambda _: None
    # As long as it was, and something else.
    store.objects.put_bytes(f"{OUTPUT}/model.safetensors", b"\x03\0\0\0\0\0\0\0{}")
    assert "does not have its hash" in str(check_outputs(store, JOB, 1, [output]))
    store.remove(f"{OUTPUT}/config.json")
    assert "missing" in str(check_outputs(store, JOB, 1, [output]))


def test_checkpoints_that_nobody_told_of_are_found_once_the_bucket_answers(
    store: BucketStore, s3_line: Line, tmp_path: Path
) -> None:
    folder = f"jobs/{JOB}/a1/checkpoints"
    hashes = {n: put(store, write_model(tmp_path / str(n), n), f"{folder}/step-{n:09d}") for n in (5, 10)}
    store.write(f"{folder}/step-000000015/half", b"")
    store.write(f"{folder}/other/{MANIFEST}", b"")
    s3_line.before = lambda _: Answer(503, "SlowDown")
    with pytest.raises(Away):
        _untold(store, JOB, 1, set())
    s3_line.before = lambda _: None
    (found,) = _untold(store, JOB, 1, {f"{folder}/step-000000005"})
    assert (found.step, found.path, found.sha256) == (10, f"{folder}/step-000000010", hashes[10])


def test_a_removal_that_is_cut_off_leaves_nothing_that_looks_whole(
    store: BucketStore, s3_line: Line, tmp_path: Path
) -> None:
    path = f"jobs/{JOB}/a1/checkpoints/step-000000005"
    put(store, write_model(tmp_path / "c"), path)
    s3_line.forget()
    s3_line.before = lambda request: Answer(503, "SlowDown") if request.number > 1 else None
    with pytest.raises(Away):
        store.remove(path)
    s3_line.before = lambda _: None
    assert len(paths(store)) == 2
    assert f"{path}/{MANIFEST}" not in paths(store)
    # Done again, with a slash too many: as a worker may have named it.
    store.remove(f"jobs/{JOB}/a1//checkpoints/step-000000005")
    assert paths(store) == []


def test_what_an_attempt_that_is_dead_had_not_finished_goes_and_nothing_else(
    store: BucketStore, tmp_path: Path
) -> None:
    folder = f"jobs/{JOB}/a1"
    put(store, write_model(tmp_path / "c"), f"{folder}/checkpoints/step-000000005")
    put(store, write_model(tmp_path / "m"), OUTPUT)
    store.write(f"{folder}/tensorboard/events", b"x")
    kept = paths(store)
    store.write(f"{folder}/checkpoints/step-000000010/node-1/model.bin", b"x")
    store.write(f"{folder}/checkpoints/step-000000010/inner/{MANIFEST}", b"x")
    store.write(f"{folder}/outputs/adapter/model.safetensors", b"x")
    cut_off = store.objects.upload(f"{folder}/checkpoints/step-000000015/large")
    cut_off.write(bytes(6 * 2**20))
    store.remove_unfinished(folder)
    assert paths(store) == kept
    assert store.objects.abort_uploads() == 0


def test_of_a_job_that_is_deleted_its_models_stay(store: BucketStore, tmp_path: Path) -> None:
    put(store, write_model(tmp_path / "m"), OUTPUT)
    for other in (f"{OUTPUT}-2/x", f"jobs/{JOB}/a1/log/rank-0.log", f"logs/{JOB}/a1/rank-0.log", "jobs/job-other/a1/x"):
        store.write(other, b"x")
    store.remove_job(JOB, [OUTPUT])
    left = [f"{OUTPUT}/{name}" for name in ("config.json", MANIFEST, "model.safetensors")]
    assert paths(store) == [*left, "jobs/job-other/a1/x"]
    store.remove_job(JOB, [])
    assert paths(store) == ["jobs/job-other/a1/x"]


def test_of_a_long_log_its_end_is_kept_and_where_that_begins(store: BucketStore) -> None:
    folder = f"jobs/{JOB}/a1/log"
    store.write(f"{folder}/rank-0.log", b"short\n")
    store.write(f"{folder}/rank-1.from-1048576.log", b"x" * 2**20 + b"end\n")
    store.write(f"{folder}/launcher.log", b"")
    ends = log_ends(store, folder)
    assert (ends[0].start, ends[0].content) == (0, b"short\n")
    assert (ends[1].start, ends[1].content[-4:], len(ends[1].content)) == (2**20 + 4, b"end\n", 2**20)
    assert sorted(ends) == [0, 1]
