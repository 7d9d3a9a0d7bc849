"""Uploads: checked line by line as they come, and nothing left behind when they fail."""

import asyncio
import contextlib
import hashlib
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.exc import OperationalError

from api import errors
from api.folder import FolderStore
from api.leftovers import sweep
from api.settings import Settings
from api.stores import Upload
from tests.api.conftest import DIALOGUE, TEXT, Plane, paths, rows

Part = tuple[str, bytes, str]


async def upload(plane: Plane, content: bytes, purpose: str = "train", **headers: str) -> httpx.Response:
    return await plane.http.post(
        "/v1/files", data={"purpose": purpose}, files={"file": ("rows.jsonl", content)}, headers=headers
    )


def left_behind(settings: Settings) -> list[str]:
    return [path.name for path in (settings.store_path / "files").iterdir()]


async def test_a_file_comes_back_as_it_was_sent(plane: Plane) -> None:
    content = rows(100, DIALOGUE)
    answer = await upload(plane, content)
    assert answer.status_code == 201, answer.text
    file = answer.json()
    assert (file["rows"], file["kind"], file["bytes"], file["filename"]) == (
        100,
        "messages",
        len(content),
        "rows.jsonl",
    )
    assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert answer.headers["location"] == f"/v1/files/{file['id']}"
    assert (await plane.http.get(f"/v1/files/{file['id']}/content")).content == content
    assert (await plane.http.get(f"/v1/files/{file['id']}")).json() == file
    assert (await plane.http.get("/v1/files")).json()["data"] == [file]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (rows(6) + b'{"text": "no end\n' + rows(3), "line 7"),
        (rows(6) + b'{"text": NaN}\n', "line 7"),
        (rows(6) + b'{"text": "\xff"}\n', "line 7"),
        (rows(6) + DIALOGUE.encode(), "line 7"),
        (rows(6) + b'{"txt": "typo"}', "line 7"),
        (b"", "no rows"),
        (b"\n\n", "no rows"),
    ],
)
async def test_a_broken_line_is_named_and_nothing_is_kept(
    plane: Plane, settings: Settings, content: bytes, says: str
) -> None:
    answer = await upload(plane, content)
    assert answer.status_code == 422
    assert paths(answer) == ["file"]
    assert says in answer.text
    assert left_behind(settings) == []
    assert (await plane.http.get("/v1/files")).json()["data"] == []


async def test_a_file_over_the_limit_is_refused_and_nothing_is_kept(plane: Plane, settings: Settings) -> None:
    much = rows(settings.max_file // len(TEXT) + 10)
    assert len(much) > settings.max_file
    answer = await upload(plane, much)
    assert answer.status_code == 413
    paths(answer)
    assert left_behind(settings) == []
    assert (await upload(plane, rows(settings.max_file // len(TEXT) - 10))).status_code == 201


async def test_a_form_that_never_ends_is_refused(plane: Plane, settings: Settings) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\ntrain\r\n'
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{"text": "a"}\r\n--x--\r\n'
        for _ in range(4 * settings.max_file // 2**10):
            yield b"\n" * 2**10

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = await plane.http.post("/v1/files", content=endless(), headers=headers)
    assert answer.status_code == 413, answer.text
    paths(answer)
    assert left_behind(settings) == []


async def test_a_full_disk_is_said_and_nothing_is_kept(
    plane: Plane, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = FolderStore.upload

    def on_full_disk(store: FolderStore, id: str) -> Upload:
        upload: Any = begin(store, id)
        upload._file.close()
        upload._file = Path("/dev/full").open("wb")  # noqa: SIM115
        return upload

    monkeypatch.setattr(FolderStore, "upload", on_full_disk)
    for count in (1, 2000):
        answer = await upload(plane, rows(count))
        assert answer.status_code == 507, answer.text
        assert "disk is full" in answer.text
        paths(answer)
    assert left_behind(settings) == []


async def test_a_full_database_is_not_taken_for_one_that_is_away() -> None:
    app = FastAPI()
    errors.install(app)

    @app.get("/")
    def write() -> None:
        with contextlib.closing(sqlite3.connect(":memory:")) as database:
            database.execute("PRAGMA max_page_count = 1")
            try:
                database.execute("CREATE TABLE t (x)")
            except sqlite3.OperationalError as error:
                raise OperationalError("CREATE TABLE", None, error) from error

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as http:
        answer = await http.get("/")
    assert answer.status_code == 507
    assert "disk is full" in answer.text


async def test_an_upload_that_breaks_off_leaves_nothing(plane: Plane, settings: Settings) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + rows(10)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await plane.http.post("/v1/files", content=half(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    async with asyncio.timeout(10):
        while left_behind(settings):  # noqa: ASYNC110 — a folder has no event to wait for
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"", 415),
        ("multipart/form-data; boundary=x", b"", 400),
        ("multipart/form-data; boundary=x", b"nonsense", 400),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n", 422),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n1\r\n--x--', 422),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\ntrain\r\n--x--\r\n',
            422,
        ),
    ],
)
async def test_a_malformed_form_is_a_clear_problem(
    plane: Plane, settings: Settings, kind: str, body: bytes, status: int
) -> None:
    answer = await plane.http.post("/v1/files", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    paths(answer)
    assert left_behind(settings) == []


@pytest.mark.parametrize("purpose", ["", "x" * 33, "../etc", "a b", "é", "--", "train\n"])
async def test_a_purpose_is_one_word(plane: Plane, purpose: str) -> None:
    answer = await upload(plane, rows(1), purpose)
    assert answer.status_code == 422
    assert paths(answer) == ["purpose"]


async def test_a_filename_is_no_path(plane: Plane) -> None:
    answer = await plane.http.post(
        "/v1/files", data={"purpose": "train"}, files={"file": ("../../etc/passwd", rows(1))}
    )
    assert answer.json()["filename"] == "passwd"


async def test_the_same_key_and_file_make_one_file(plane: Plane, settings: Settings) -> None:
    first = await upload(plane, rows(2), **{"Idempotency-Key": "k"})
    again = await upload(plane, rows(2), **{"Idempotency-Key": "k"})
    other = await upload(plane, rows(3), **{"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 422)
    assert again.json() == first.json()
    assert left_behind(settings) == [f"{first.json()['id']}.jsonl"]


async def test_a_file_is_deleted_only_when_no_unfinished_job_needs_it(plane: Plane, settings: Settings) -> None:
    file = (await upload(plane, rows(5))).json()["id"]
    spec = {"stage": {"type": "pretrain", "model": {"config": {"model_type": "llama"}}, "data": f"files/{file}"}}
    job = (await plane.submit(spec))["id"]
    answer = await plane.http.delete(f"/v1/files/{file}")
    assert answer.status_code == 409
    paths(answer)
    assert job in answer.text
    await plane.set(job, phase="failed")
    assert (await plane.http.delete(f"/v1/files/{file}")).status_code == 204
    assert (await plane.http.get(f"/v1/files/{file}/content")).status_code == 404
    assert left_behind(settings) == []


async def test_other_requests_are_answered_while_a_file_comes_slowly(plane: Plane) -> None:
    answered = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\ntrain\r\n'
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + rows(10)
        await answered.wait()
        yield rows(10) + b"\r\n--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    uploading = asyncio.create_task(plane.http.post("/v1/files", content=slowly(), headers=headers))
    async with asyncio.timeout(10):
        await plane.submit()
        assert (await upload(plane, rows(1))).status_code == 201
    answered.set()
    assert (await uploading).json()["rows"] == 20


async def test_bytes_that_were_never_committed_are_swept_at_a_later_start_and_no_others(
    plane: Plane, settings: Settings
) -> None:
    good = (await upload(plane, rows(5))).json()["id"]
    files = settings.store_path / "files"
    # A process died: in the midst of an upload; before the commit; and after it.
    (files / ".tmp-file-half").write_bytes(rows(1))
    (files / ".tmp-file-whole").write_bytes(rows(1))
    (files / "file-whole.jsonl").hardlink_to(files / ".tmp-file-whole")
    (files / f".tmp-{good}").hardlink_to(files / f"{good}.jsonl")
    (files / "file-another-s.jsonl").write_bytes(rows(1))
    await sweep(plane.control.store, plane.control.database)
    assert len(left_behind(settings)) == 6
    for path in files.iterdir():
        os.utime(path, (0, 0))
    await sweep(plane.control.store, plane.control.database)
    assert sorted(left_behind(settings)) == sorted([f"{good}.jsonl", "file-another-s.jsonl"])


async def test_bytes_of_a_deletion_that_was_cut_off_are_swept(
    plane: Plane, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = (await upload(plane, rows(5))).json()["id"]

    def die(*_: object) -> None:
        raise RuntimeError("as if the process had died")

    with monkeypatch.context() as dying:
        dying.setattr(FolderStore, "remove", die)
        assert (await plane.http.delete(f"/v1/files/{id}")).status_code == 500
    assert f"{id}.jsonl" in left_behind(settings)
    for path in (settings.store_path / "files").iterdir():
        os.utime(path, (0, 0))
    await sweep(plane.control.store, plane.control.database)
    assert left_behind(settings) == []
