"""Machines that share a store whose file system knows no locks between them."""

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.model.test_models import tiny_gguf
from worker import gguf as conversion
from worker.contract import manifest


def test_two_machines_may_convert_one_model_at_once_and_the_first_whole_folder_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cache = tiny_gguf(tmp_path / "a.gguf"), tmp_path / "cache"
    both = threading.Barrier(2)
    convert = conversion._convert

    def no_locks(lock: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def convert_together(source: Path, folder: Path) -> None:
        with only_one:
            convert(source, folder)
        both.wait(60)

    only_one = threading.Lock()
    monkeypatch.setattr(conversion.fcntl, "flock", no_locks)
    monkeypatch.setattr(conversion, "_convert", convert_together)
    monkeypatch.setattr(conversion.socket, "gethostname", lambda: threading.current_thread().name)
    with ThreadPoolExecutor(2, thread_name_prefix="machine") as machines:
        found = [machines.submit(conversion.converted, file, cache) for _ in range(2)]
        folders = {one.result(120)[0] for one in found}
    (folder,) = folders
    assert folder.name == manifest.file_sha256(file)
    manifest.verify(folder)
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]
