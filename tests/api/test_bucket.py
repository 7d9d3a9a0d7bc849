"""The store as a bucket of a real S3 server: uploads, downloads and models as with a folder, and when it fails."""

import asyncio
import hashlib
import io
import json
import logging
import tarfile
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.bucket import BucketStore
from api.data_folder import CannotStart
from api.leftovers import sweep
from api.serve import running
from api.settings import BadSettings, Settings, load
from tests.api.conftest import DIALOGUE, Plane, paths, plane_on, rows, write_adapter, write_model
from tests.api.test_files import upload
from tests.api.test_inputs import refused, register, sft
from tests.storage.server import Answer, Line, Request
from worker.contract.manifest import MANIFEST, verify

AWAY = Answer(503, "SlowDown")
# More than one part.
LARGE = rows(350, '{"text": "' + "a row of some length, " * 740 + '"}\n')
assert len(LARGE) > 5 * 2**20


@pytest.fixture
def settings(tmp_path: Path, s3_line: Line, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A store in a bucket of its own."""
    for name, value in s3_line.s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("api.bucket._PATIENCE", 0.3)
    (tmp_path / "allowed").mkdir()
    return load(
        data=tmp_path / "data",
        store=f"s3://{s3_line.s3.bucket()}/some/where",
        port=0,
        allowed_paths=[tmp_path / "allowed"],
        max_file=12 * 2**20,
        shutdown_grace=2.0,
    )


@pytest.fixture
async def plane(settings: Settings) -> AsyncIterator[Plane]:
    """A control plane with its store in a bucket, behind a line that a test may disturb."""
    async with plane_on(settings) as plane:
        yield plane


def bucket(plane: Plane) -> BucketStore:
    assert isinstance(plane.control.store, BucketStore)
    return plane.control.store


def there(plane: Plane) -> list[str]:
    return sorted(entry.path for entry in bucket(plane).objects.list())


def parts_left(plane: Plane) -> int:
    return bucket(plane).objects.abort_uploads()


def away(line: Line, when: Callable[[Request], bool] = lambda request: True) -> None:
    line.before = lambda request: AWAY if when(request) else None


def said(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    paths(answer)
    return str(answer.json()["detail"])


@pytest.mark.parametrize("content", [rows(100, DIALOGUE), LARGE], ids=["small", "in parts"])
async def test_a_file_comes_back_as_it_was_sent_whole_and_in_ranges(plane: Plane, content: bytes) -> None:
    file = (await upload(plane, content)).json()
    assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert there(plane) == [f"files/{file['id']}.jsonl"]
    url = f"/v1/files/{file['id']}/content"
    whole = await plane.http.get(url)
    assert whole.content == content
    for range, start, end in ((f"bytes=5-{len(content) - 7}", 5, -6), ("bytes=-9", -9, None), ("bytes=0-0", 0, 1)):
        answer = await plane.http.get(url, headers={"Range": range, "If-Range": whole.headers["etag"]})
        assert (answer.status_code, answer.content) == (206, content[start:end])
    for range, status in ((f"bytes={len(content)}-", 416), ("bytes=2-1", 400)):
        assert (await plane.http.get(url, headers={"Range": range})).status_code == status
    assert (await plane.http.delete(f"/v1/files/{file['id']}")).status_code == 204
    assert there(plane) == []
    assert (await plane.http.get(url)).status_code == 404


@pytest.mark.parametrize(
    ("content", "status"), [(LARGE + b"{", 422), (LARGE * 3, 413), (rows(3) + b"no row", 422)], ids=["end", "much", "3"]
)
async def test_a_refused_upload_leaves_nothing_in_the_bucket(plane: Plane, content: bytes, status: int) -> None:
    said(await upload(plane, content), status)
    assert (there(plane), parts_left(plane)) == ([], 0)


async def test_an_upload_that_breaks_off_leaves_nothing_in_the_bucket(plane: Plane) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + LARGE
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await plane.http.post("/v1/files", content=half(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    async with asyncio.timeout(20):
        while there(plane):  # noqa: ASYNC110 — a bucket has no event to wait for
            await asyncio.sleep(0.05)
    assert parts_left(plane) == 0


async def test_whatever_a_file_is_called_its_key_is_its_id(plane: Plane) -> None:
    for name in ("../../jobs/job-x/a1/manifest.json", "/etc/passwd", "a\nb", "ü%2e%2e.jsonl", "x" * 3000):
        answer = await plane.http.post("/v1/files", data={"purpose": "train"}, files={"file": (name, rows(1))})
        assert answer.status_code == 201, answer.text
        content = await plane.http.get(f"/v1/files/{answer.json()['id']}/content")
        assert content.content == rows(1)
    assert all(path.startswith("files/file-") for path in there(plane))


async def test_a_bucket_that_is_away_is_said_and_an_upload_is_not_half_there(plane: Plane, s3_line: Line) -> None:
    file = (await upload(plane, rows(5))).json()["id"]
    model = await register(plane, write_model(plane.control.settings.data / "m1"))
    spec = sft("models/good", plane.control.settings.allowed_paths[0] / "none")
    away(s3_line)
    waiting = asyncio.gather(
        upload(plane, rows(5)),
        upload(plane, LARGE),
        plane.http.get(f"/v1/files/{file}/content"),
        plane.http.delete(f"/v1/files/{file}"),
        plane.http.get(f"/v1/models/{model}/files"),
        plane.http.get(f"/v1/models/{model}/files/config.json"),
        plane.http.get(f"/v1/models/{model}/download"),
        plane.http.delete(f"/v1/models/{model}"),
        plane.http.post("/v1/jobs", json=spec),
        plane.http.post("/v1/estimate", json=spec),
    )
    for answer in await waiting:
        assert "the store does not answer" in said(answer, 503)
        assert answer.headers["retry-after"]
    # What needs no store is as it was, and so is what was asked to go.
    assert [f["id"] for f in (await plane.http.get("/v1/files")).json()["data"]] == [file]
    assert (await plane.http.get(f"/v1/models/{model}")).status_code == 200
    assert (await plane.http.get("/readyz")).status_code == 200
    s3_line.before = lambda _: None
    assert (await upload(plane, rows(5))).status_code == 201
    assert (await plane.http.get(f"/v1/files/{file}/content")).content == rows(5)


@pytest.mark.parametrize("number", [1, 3, 4, 5])
async def test_an_upload_whose_bucket_fails_at_any_write_is_whole_or_not_there(
    plane: Plane, s3_line: Line, number: int
) -> None:
    s3_line.forget()
    away(s3_line, lambda request: request.writes and request.number >= number)
    answer = await upload(plane, LARGE)
    s3_line.before = lambda _: None
    listed = (await plane.http.get("/v1/files")).json()["data"]
    if answer.status_code == 201:
        assert (await plane.http.get(f"/v1/files/{listed[0]['id']}/content")).content == LARGE
    else:
        assert "does not answer" in said(answer, 503)
        assert listed == []
    await swept_later(plane)
    assert there(plane) == [f"files/{file['id']}.jsonl" for file in listed]
    assert parts_left(plane) == 0


async def swept_later(plane: Plane) -> None:
    """The sweep of a day later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("api.leftovers._AGE", timedelta(hours=-1))
        await sweep(plane.control.store, plane.control.database)


async def test_a_deletion_that_is_cut_off_is_ended_by_a_sweep(plane: Plane, s3_line: Line) -> None:
    file = (await upload(plane, rows(5))).json()["id"]
    model = await register(plane, write_model(plane.control.settings.data / "m1"))
    # The mark can be put, and nothing can be removed.
    away(s3_line, lambda request: request.method == "POST")
    assert (await plane.http.delete(f"/v1/files/{file}")).status_code == 204
    assert (await plane.http.delete(f"/v1/models/{model}")).status_code == 204
    s3_line.before = lambda _: None
    assert (await plane.http.get(f"/v1/models/{model}")).status_code == 404
    assert {path.rpartition("/")[2] for path in there(plane)} >= {f"{file}.jsonl", "model.safetensors"}
    # A young one may be another replica's, which is at it.
    await sweep(plane.control.store, plane.control.database)
    assert len(there(plane)) > 2
    await swept_later(plane)
    assert there(plane) == []


async def test_a_sweep_that_another_replica_outruns_goes_on(plane: Plane, s3_line: Line) -> None:
    for mark in ("models/.tmp-a", "models/.tmp-b"):
        bucket(plane).unsettle(mark, "jobs/j/a1/outputs/model")

    def faster(request: Request) -> None:
        if request.method == "GET" and request.path.endswith(".tmp-a"):
            s3_line.before = lambda _: None
            bucket(plane).remove("models/.tmp-a")

    s3_line.before = faster
    await swept_later(plane)
    assert there(plane) == []


async def test_an_upload_that_took_a_day_is_not_swept_before_its_row_is_there(plane: Plane) -> None:
    arriving = bucket(plane).upload("file-slow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("api.bucket._LONG", -1.0)
        arriving.write(rows(1))
        bucket(plane).objects.put_bytes("files/.tmp-file-slow", b"of yesterday")
        arriving.end()
    assert bucket(plane).read("files/.tmp-file-slow") == b"files/file-slow.jsonl"


async def test_parts_of_converted_models_are_swept_too(plane: Plane) -> None:
    upload = bucket(plane).objects.upload("cache/models/f/model.safetensors")
    upload.write(bytes(6 * 2**20))
    await swept_later(plane)
    assert bucket(plane).objects.abort_uploads("cache") == 0


async def test_a_sweep_leaves_what_is_known(plane: Plane) -> None:
    file = (await upload(plane, rows(5))).json()["id"]
    model = await register(plane, write_model(plane.control.settings.data / "m1"))
    before = there(plane)
    for mark, path in ((f"files/.tmp-{file}", f"files/{file}.jsonl"), (f"models/.tmp-{model}", "jobs")):
        bucket(plane).unsettle(mark, path)
    bucket(plane).unsettle("models/.tmp-gone", "../../elsewhere")
    await swept_later(plane)
    assert there(plane) == before


async def test_a_models_files_and_its_archive_are_those_that_were_put_there(plane: Plane, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m1")
    (folder / "large.safetensors").write_bytes(b"12345678" * 2**18)
    content = (folder / "large.safetensors").read_bytes()
    id = await register(plane, folder)
    shown = (await plane.http.get(f"/v1/models/{id}")).json()
    assert shown["location"] == f"{plane.control.settings.store}/jobs/job-x/a1/outputs/model"
    listed = (await plane.http.get(f"/v1/models/{id}/files")).json()["data"]
    assert [file["path"] for file in listed] == ["config.json", "large.safetensors", "model.safetensors"]
    answer = await plane.http.get(f"/v1/models/{id}/files/large.safetensors", headers={"Range": "bytes=8-"})
    assert (answer.status_code, answer.content) == (206, content[8:])
    for name in ("../../../../files/x", "%2e%2e/manifest.json", "none", "/etc/passwd"):
        assert (await plane.http.get(f"/v1/models/{id}/files/{name}")).status_code == 404
    archive = await plane.http.get(f"/v1/models/{id}/download")
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as opened:
        opened.extractall(tmp_path / "out", filter="data")
    assert verify(tmp_path / "out" / "good-1").sha256 == shown["sha256"]


async def test_a_spec_is_checked_against_a_model_without_fetching_its_weights(
    plane: Plane, tmp_path: Path, s3_line: Line
) -> None:
    await register(plane, write_model(tmp_path / "m1", positions=64))
    await register(plane, write_adapter(tmp_path / "m2"), 2, "adapter")
    file = (await upload(plane, rows(20, DIALOGUE))).json()["id"]
    s3_line.forget()
    data = Path(f"files/{file}")
    job = await plane.submit(sft("models/good@1", data))
    assert job["inputs"]["stage.model"]["location"] == "jobs/job-x/a1/outputs/model"
    long = sft("models/good@1", data)
    long["stage"]["max_length"] = 128
    assert "64" in (await refused(plane, long))["stage.max_length"]
    assert "adapter" in (await refused(plane, sft("models/model-2adapter", data)))["stage.model"]
    estimate = await plane.http.post("/v1/estimate", json=sft("models/good@1", data))
    assert estimate.status_code in (200, 422)
    assert not any("safetensors" in request.path for request in s3_line.requests)


async def test_a_model_of_which_something_is_gone_is_said_to_be_damaged(plane: Plane, tmp_path: Path) -> None:
    id = await register(plane, write_model(tmp_path / "m1"))
    data = Path(f"files/{(await upload(plane, rows(20, DIALOGUE))).json()['id']}")
    folder = "jobs/job-x/a1/outputs/model"
    bucket(plane).objects.put_bytes(f"{folder}/model.safetensors", b"\x02\0\0\0\0\0\0\0{}, longer")
    assert "damaged" in (await refused(plane, sft("models/good", data)))["stage.model"]
    bucket(plane).remove(f"{folder}/model.safetensors")
    assert "missing" in (await refused(plane, sft("models/good", data)))["stage.model"]
    assert "not in the store" in said(await plane.http.get(f"/v1/models/{id}/files/model.safetensors"), 409)
    hostile = {"files": {"../../../../files/x": {"bytes": 1, "sha256": "0" * 64}}}
    bucket(plane).objects.put_bytes(f"{folder}/{MANIFEST}", json.dumps(hostile).encode())
    assert "damaged" in said(await plane.http.get(f"/v1/models/{id}/download"), 409)


async def test_logs_are_read_where_they_lie(plane: Plane) -> None:
    job = (await plane.submit())["id"]
    await plane.start(job)
    bucket(plane).write(f"jobs/{job}/a1/log/rank-0.log", b"".join(b"line %d\n" % n for n in range(50)))
    answer = (await plane.http.get(f"/v1/jobs/{job}/logs", params={"tail": 2})).json()["data"]
    assert [line["text"] for line in answer] == ["line 48\nline 49\n"]
    bucket(plane).write(f"logs/{job}/a1/rank-0.from-1000.log", b"half\nwhole\n")
    bucket(plane).remove(f"jobs/{job}/a1/log")
    await plane.set(job, phase="succeeded")
    streamed = await plane.http.get(f"/v1/jobs/{job}/logs/stream")
    assert "whole" in streamed.text
    assert '"phase":"succeeded"' in streamed.text


async def test_no_answer_and_no_log_says_the_credentials(
    plane: Plane, s3_line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    s3_line.before = lambda _: Answer(403, "InvalidAccessKeyId")
    answer = await upload(plane, rows(5))
    assert "refuses" in said(answer, 503)
    await upload(plane, LARGE)
    for secret in (s3_line.s3.secret, s3_line.s3.key):
        assert secret not in answer.text
        # What botocore itself logs when it is asked to tell all holds the key's name, never the secret.
        assert not any(secret in r.getMessage() for r in caplog.records if r.name.startswith(("api", "worker")))
    assert s3_line.s3.secret not in caplog.text


async def test_a_bucket_that_is_full_is_said(plane: Plane, s3_line: Line) -> None:
    file = (await upload(plane, rows(5))).json()["id"]
    s3_line.before = lambda request: Answer(507, "QuotaExceeded") if request.method == "PUT" else None
    assert "full" in said(await upload(plane, rows(5)), 507)
    # Deleting makes room.
    assert (await plane.http.delete(f"/v1/files/{file}")).status_code == 204
    assert there(plane) == []


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (AWAY, "does not answer"),
        (Answer(403, "AccessDenied"), "refuses the credentials"),
        (Answer(404, "NoSuchBucket"), "there is no bucket"),
    ],
)
async def test_it_does_not_start_on_a_bucket_that_it_cannot_use(
    settings: Settings, s3_line: Line, answer: Answer, says: str
) -> None:
    s3_line.before = lambda _: answer
    with pytest.raises(CannotStart) as refused:
        async with running(settings, "api"):
            pass
    assert says in str(refused.value)
    assert str(refused.value).startswith("STORE: the store s3://")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"store": "s3://key:secret@bucket"}, "AWS_"),
        ({"store": "s3://"}, "bucket"),
        ({"store": "gs://bucket?token=secret"}, "s3://bucket/prefix"),
        ({"store": "s3://bucket", "store_claim": "rlhf"}, "no volume"),
        ({"store_secret": "s3"}, "STORE=s3://"),
        ({"scratch_size": "much", "store": "s3://bucket"}, "SCRATCH_SIZE"),
    ],
)
def test_settings_of_a_bucket_are_refused_with_a_sentence(given: dict[str, Any], says: str) -> None:
    with pytest.raises(BadSettings) as refused:
        load(**given)
    assert says in str(refused.value)
    assert "secret" not in str(refused.value)


async def test_two_replicas_see_the_same_store(plane: Plane, settings: Settings, tmp_path: Path) -> None:
    other = load(**{**settings.model_dump(), "data": tmp_path / "other", "database_url": str(settings.database)})
    file = (await upload(plane, LARGE)).json()["id"]
    async with plane_on(other) as second:
        assert (await second.http.get(f"/v1/files/{file}/content")).content == LARGE
        assert (await second.http.delete(f"/v1/files/{file}")).status_code == 204
    assert (await plane.http.get(f"/v1/files/{file}/content")).status_code == 404
    assert there(plane) == []
