"""The head start of hashing: after the start alone, and never instead of a look at what is there now."""

import threading
from pathlib import Path

import pytest

from worker import ahead
from worker.contract import manifest
from worker.contract.check import parse_spec
from worker.contract.order import Input, Order
from worker.errors import Stopped

pytestmark = pytest.mark.quick


def order(tmp_path: Path, path: Path, sha256: str = "0" * 64) -> Order:
    return Order(
        job="job-aaaaaaaaaaaa",
        attempt=1,
        spec=parse_spec({"stage": {"type": "rehearse"}}),
        inputs={"stage.model": Input(reference="x", kind="path", location=str(path), sha256=sha256)},
        store=tmp_path.as_uri(),
        control_url_file="",
        token_file="",
        termination_file="",
        log_folder="",
    )


def test_nothing_is_read_before_the_start_and_what_is_there_then_counts(tmp_path: Path) -> None:
    file, start = tmp_path / "rows.jsonl", threading.Event()
    file.write_text("before")
    ahead.begin(order(tmp_path, file), lambda: start.wait() and None)
    file.write_text("at the start")
    start.set()
    assert ahead.tree_hash(file) == manifest.file_sha256(file)


def test_a_second_look_reads_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("first")
    ahead.begin(order(tmp_path, file), lambda: None)
    first = ahead.tree_hash(file)
    file.write_text("second")
    assert ahead.tree_hash(file) == manifest.file_sha256(file) != first


def test_a_converted_model_that_is_not_whole_is_seen(tmp_path: Path) -> None:
    folder = ahead.models_cache(tmp_path) / ("0" * 64)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / manifest.MANIFEST).write_bytes(manifest.describe(folder).encode())
    ahead.begin(order(tmp_path, tmp_path / "m.gguf"), lambda: None)
    assert ahead.whole(folder)
    (folder / "model.safetensors").write_bytes(b"weighty")
    ahead.begin(order(tmp_path, tmp_path / "m.gguf"), lambda: None)
    assert not ahead.whole(folder)
    assert not ahead.whole(folder)


def test_an_attempt_that_does_not_start_reads_nothing(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("rows")

    def refused() -> None:
        raise Stopped("stopped before it began")

    ahead.begin(order(tmp_path, file), refused)
    with pytest.raises(Stopped):
        ahead.tree_hash(file)


def test_a_file_that_is_not_there_is_the_readers_to_tell(tmp_path: Path) -> None:
    ahead.begin(order(tmp_path, tmp_path / "gone"), lambda: None)
    with pytest.raises(OSError):
        ahead.tree_hash(tmp_path / "gone")
