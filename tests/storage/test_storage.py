"""A store in a bucket, against a real S3 server: what is there is whole, whatever happens on the way."""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from tests.storage.server import S3, Answer, Line, Request, serving
from worker.contract import manifest
from worker.contract.manifest import MANIFEST, Damaged
from worker.storage import Away, Full, NotThere, ObjectStore, Options, Place, Refused, StorageFailure

MIB = 2**20
PART = 5 * MIB
Make = Callable[..., ObjectStore]


@pytest.fixture
def line(s3_line: Line, monkeypatch: pytest.MonkeyPatch) -> Line:
    """A line to the server, which the environment leads to."""
    for name, value in s3_line.s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3_line


@pytest.fixture
def store(line: Line) -> ObjectStore:
    """An empty store under a prefix."""
    return made(line)


def made(line: Line, *, patience: float = 5.0, bucket: str | None = None) -> ObjectStore:
    url = f"s3://{bucket or line.s3.bucket()}/some/team"
    store = ObjectStore(url, Options(part_bytes=PART, at_once=3, patience=patience))
    line.forget()
    return store


def sealed(folder: Path, **files: int) -> manifest.Manifest:
    """A folder with files of these sizes and its manifest."""
    for name, size in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    described = manifest.describe(folder)
    (folder / MANIFEST).write_bytes(described.encode())
    return described


def test_a_folder_comes_back_as_it_was_put_there(store: ObjectStore, tmp_path: Path) -> None:
    described = sealed(tmp_path / "a", small=10, empty=0, large=2 * PART + 7, deep__er=100)
    assert store.put_folder(tmp_path / "a", "jobs/j/a1/checkpoints/step-1") == described
    assert [entry.path for entry in store.manifests("jobs")] == ["jobs/j/a1/checkpoints/step-1"]
    assert store.fetch_folder("jobs/j/a1/checkpoints/step-1", tmp_path / "b") == described
    assert manifest.verify(tmp_path / "b") == described
    assert not list(tmp_path.glob(".tmp-*"))


def test_what_is_there_already_is_not_sent_again(store: ObjectStore, line: Line, tmp_path: Path) -> None:
    sealed(tmp_path / "a", one=10, two=PART + 1)
    store.put_folder(tmp_path / "a", "models/m")
    line.forget()
    store.put_folder(tmp_path / "a", "models/m")
    assert [request.path.rpartition("/")[2] for request in line.writes] == [MANIFEST]


def test_what_has_another_hash_is_sent_again(store: ObjectStore, tmp_path: Path) -> None:
    sealed(tmp_path / "a", one=10)
    store.put_bytes("models/m/one", bytes(10))
    described = store.put_folder(tmp_path / "a", "models/m")
    assert store.fetch_folder("models/m", tmp_path / "b") == described


@pytest.mark.parametrize(
    ("call", "done"),
    [
        pytest.param(
            call, done, id=f"{'after' if done else 'before'} {call}",
            # Short: one of each kind.
            marks=[] if (call, done) in {(2, False), (5, True), (7, True), (8, False)} else [pytest.mark.soak],
        )
        for call in range(1, 9)
        for done in (False, True)
    ],
)  # fmt: skip
def test_an_upload_that_was_cut_off_goes_on_and_is_never_half_there(
    line: Line, tmp_path: Path, call: int, done: bool
) -> None:
    # 8 writes: two small files at once, an upload's begin, its 3 parts, its end, the manifest.
    store, cut = made(line, patience=0), threading.Event()
    described = sealed(tmp_path / "a", a=10, b=2 * PART + 1, c=11)

    def fail(request: Request) -> Answer | None:
        if request.number >= call and request.writes:
            cut.set()
        return Answer(503, "ServiceUnavailable") if cut.is_set() and not (done and request.number == call) else None

    line.before = fail
    if not (done and call == 8):
        with pytest.raises(Away):
            store.put_folder(tmp_path / "a", "m")
    else:
        store.put_folder(tmp_path / "a", "m")
    line.before = lambda _: None
    if call < 8:
        with pytest.raises(Damaged, match="has no manifest"):
            store.fetch_folder("m", tmp_path / "b")
    there = len([part for part in line.requests if part.writes])
    assert there >= 1
    line.forget()
    again = ObjectStore(store.url, store.options)
    assert again.put_folder(tmp_path / "a", "m") == described
    assert again.fetch_folder("m", tmp_path / "b") == described
    assert again.abort_uploads() == 0
    if done and 4 <= call <= 6:
        parts = [request for request in line.writes if "partNumber" in request.query]
        assert len(parts) < 3, "parts that were there were sent again"


def test_an_upload_begun_for_other_bytes_does_not_lend_its_hash(line: Line, tmp_path: Path) -> None:
    store = made(line, patience=0)
    first = os.urandom(PART)
    (tmp_path / "a").write_bytes(first + b"one")
    (tmp_path / "b").write_bytes(first + b"two")
    line.before = lambda request: Answer(503, "Away") if "partNumber=2" in request.query else None
    with pytest.raises(Away):
        store.put_file(tmp_path / "a", "files/f")
    line.before = lambda _: None
    store.put_file(tmp_path / "b", "files/f")
    assert store.stat("files/f").sha256 == manifest.file_sha256(tmp_path / "b")
    assert store.read("files/f", PART) == b"two"


def test_an_upload_that_somebody_removed_is_not_taken_for_the_file_that_was_there(line: Line, tmp_path: Path) -> None:
    store = made(line)
    for name in ("old", "new"):
        (tmp_path / name).write_bytes(os.urandom(PART + 3))
    store.put_file(tmp_path / "old", "files/f")
    removed = threading.Event()

    def remove(request: Request) -> Answer | None:
        if request.method != "POST" or "uploadId" not in request.query or removed.is_set():
            return None
        removed.set()
        return Answer(404, "NoSuchUpload")

    line.before = remove
    store.put_file(tmp_path / "new", "files/f")
    assert removed.is_set()
    assert store.read("files/f") == (tmp_path / "new").read_bytes()
    assert store.stat("files/f").sha256 == manifest.file_sha256(tmp_path / "new")


def test_a_fetch_that_was_cut_off_goes_on_where_it_was(line: Line, tmp_path: Path) -> None:
    store = made(line, patience=0)
    described = sealed(tmp_path / "a", a=10, b=3 * PART)
    store.put_folder(tmp_path / "a", "m")
    line.before = lambda request: (
        Answer(503, "Away")
        if request.path.endswith("/b") and sum(r.path.endswith("/b") for r in line.requests) > 2
        else None
    )
    line.forget()
    with pytest.raises(Away):
        store.fetch_folder("m", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    line.before = lambda _: None
    line.forget()
    assert store.fetch_folder("m", tmp_path / "b") == described
    assert 1 <= sum(r.path.endswith("/b") for r in line.requests) < 3
    assert not any(r.path.endswith("/a") for r in line.requests)


def test_a_spoilt_file_is_told_as_in_a_folder_and_nothing_is_left(store: ObjectStore, tmp_path: Path) -> None:
    sealed(tmp_path / "a", weights=100)
    store.put_folder(tmp_path / "a", "m")
    store.put_bytes("m/weights", bytes(100))
    with pytest.raises(Damaged, match="m/weights: weights does not have its hash"):
        store.fetch_folder("m", tmp_path / "m")
    store.remove("m/weights")
    with pytest.raises(Damaged, match="weights is missing"):
        store.fetch_folder("m", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_manifest_that_leads_out_of_its_folder_is_damaged(store: ObjectStore, tmp_path: Path) -> None:
    store.put_bytes("m/manifest.json", b'{"files": {"../../x": {"bytes": 1, "sha256": "%s"}}}' % (b"0" * 64))
    with pytest.raises(Damaged, match="leads out of the folder"):
        store.fetch_folder("m", tmp_path / "m")


def test_a_stream_is_there_once_it_is_finished_and_not_before(store: ObjectStore) -> None:
    content = os.urandom(2 * PART + 100)
    with store.upload("files/f") as upload:
        for at in range(0, len(content), 3 * MIB):
            upload.write(content[at : at + 3 * MIB])
        assert not store.exists("files/f")
        upload.finish()
    assert upload.sha256 == hashlib.sha256(content).hexdigest()
    assert store.read("files/f") == content
    assert store.read("files/f", PART - 1, PART + 1) == content[PART - 1 : PART + 1]
    assert store.read("files/f", len(content)) == store.read("files/f", len(content), len(content) + 5) == b""


def test_a_stream_that_is_given_up_leaves_nothing(store: ObjectStore) -> None:
    with pytest.raises(KeyError), store.upload("files/f") as upload:
        upload.write(bytes(PART))
        raise KeyError
    assert list(store.list()) == []
    assert store.abort_uploads() == 0


def test_what_is_removed_is_gone_with_all_below_it_and_nothing_beside(store: ObjectStore) -> None:
    for path in ("jobs/a/x", "jobs/a/y/manifest.json", "jobs/ab/x", "jobs/a.x"):
        store.put_bytes(path, b"1")
    assert list(store.folders("jobs")) == ["a", "ab"]
    store.remove("jobs/a")
    store.remove("jobs/not-there")
    assert [entry.path for entry in store.list("jobs")] == ["jobs/a.x", "jobs/ab/x"]


def test_a_folder_is_copied_whole_inside_the_store(store: ObjectStore, tmp_path: Path) -> None:
    described = sealed(tmp_path / "a", one=10, two=PART + 1)
    store.put_folder(tmp_path / "a", "jobs/j/a1/outputs/model")
    assert store.copy_folder("jobs/j/a1/outputs/model", "models/m/1") == described
    store.remove("jobs")
    assert store.fetch_folder("models/m/1", tmp_path / "b") == described
    assert store.stat("models/m/1/two").sha256 == described.files["two"].sha256


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (Answer(403, "InvalidAccessKeyId"), Refused, "refuses the credentials"),
        (Answer(403, "AccessDenied"), Refused, "refuses the credentials"),
        (Answer(404, "NoSuchBucket"), Refused, "there is no bucket"),
        (Answer(403, "QuotaExceeded"), Full, "has no room left"),
        (Answer(507, "XMinioStorageFull"), Full, "has no room left"),
        (Answer(400, "XMinioAdminBucketQuotaExceeded"), Full, "has no room left"),
        (Answer(403, "RequestTimeTooSkewed"), Away, "do not have the same time"),
        (Answer(400, "BadDigest"), Away, "does not answer"),
        (Answer(503, "SlowDown"), Away, "does not answer"),
        (Answer(500, "InternalError"), Away, "does not answer"),
        (Answer(400, "InvalidArgument"), StorageFailure, "does not take this call"),
    ],
    ids=lambda value: value.code if isinstance(value, Answer) else "",
)
def test_a_failure_is_told_by_what_it_is_and_without_a_secret(
    line: Line, answer: Answer, kind: type[OSError], words: str
) -> None:
    store = made(line, patience=0)
    line.before = lambda _: answer
    with pytest.raises(OSError, match=words) as caught:
        store.put_bytes("files/f", b"x")
    assert type(caught.value) is kind
    assert line.s3.secret not in str(caught.value)
    assert line.s3.key not in str(caught.value)


def test_a_server_that_comes_back_in_time_was_never_away(line: Line) -> None:
    store, until = made(line), time.monotonic() + 1.0
    line.before = lambda _: Answer(503, "ServiceUnavailable") if time.monotonic() < until else None
    store.put_bytes("files/f", b"x")
    assert store.read("files/f") == b"x"


def test_a_server_that_is_not_there_is_given_up_when_asked(line: Line) -> None:
    bucket = line.s3.bucket()
    line.close()
    asked = threading.Event()
    store = ObjectStore(f"s3://{bucket}", Options(patience=600, given_up=asked.is_set))
    threading.Timer(0.5, asked.set).start()
    began = time.monotonic()
    with pytest.raises(Away, match=r"does not answer"):
        store.exists("files/f")
    assert time.monotonic() - began < 30


def test_a_check_says_what_is_wrong_before_anything_else_does(line: Line, s3: S3) -> None:
    made(line).check()
    with pytest.raises(Refused, match="there is no bucket no-such-bucket"):
        ObjectStore("s3://no-such-bucket/x").check()


def test_a_server_is_trusted_whose_certificate_is_of_an_authority_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(tmp_path / "tls.key"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "tls.crt"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    with serving(tmp_path / "server.log", tls=tmp_path) as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{s3.bucket()}"
        with pytest.raises(Refused, match="AWS_CA_BUNDLE names"):
            ObjectStore(url, Options(patience=5)).put_bytes("files/f", b"x")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "no.crt"))
        with pytest.raises(Refused, match="AWS_CA_BUNDLE: there is no file"):
            ObjectStore(url, Options(patience=5)).put_bytes("files/f", b"x")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.crt"))
        store = ObjectStore(url, Options(patience=5))
        store.put_bytes("files/f", b"x")
        assert store.read("files/f") == b"x"


def test_without_credentials_it_says_so(line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = made(line)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(Refused, match="needs credentials, and there are none"):
        store.exists("files/f")


def test_what_is_not_there_is_not_there(store: ObjectStore, tmp_path: Path) -> None:
    assert not store.exists("files/f")
    with pytest.raises(NotThere):
        store.read("files/f")
    with pytest.raises(FileNotFoundError):
        store.fetch_file("files/f", tmp_path / "f")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "no bucket's name"),
        ("file:///x", "must be s3://"),
        ("s3://key:secret@bucket", "AWS_"),
        ("s3://bucket/a/../b", "plain path"),
        ("s3://bucket?endpoint=x", "AWS_"),
    ],
)
def test_a_url_that_names_no_place_in_a_bucket_is_refused_without_its_secret(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Place.of(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["", "/x", "../x", "a/../../x", "a//b", "."])
def test_no_path_leads_out_of_the_store(path: str) -> None:
    with pytest.raises(ValueError, match="no path inside the store"):
        Place("bucket", "prefix/").key(path)


def test_a_url_below_the_store_is_a_path_in_it() -> None:
    place = Place.of("s3://bucket/some/team/")
    assert place.url == "s3://bucket/some/team"
    assert place.path_of_url("s3://bucket/some/team/files/x") == "files/x"
    assert place.path_of_url("s3://bucket/some/teams/files/x") is None
    assert place.path_of_url("s3://bucket/some/team/../x") is None
