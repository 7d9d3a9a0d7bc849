"""Sealed folders: whole, or not there."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from worker import checkpoint
from worker.contract import manifest

quick = pytest.mark.quick


def save(job: Path, attempt: int, step: int, content: bytes = b"weights") -> Path:
    final = checkpoint.step_folder(job / f"a{attempt}" / "checkpoints", step)
    temporary = checkpoint.temporary_for(final)
    (temporary / "deep").mkdir()
    (temporary / "model.bin").write_bytes(content * 100)
    (temporary / "deep" / "rank-0.json").write_text(f'{{"step": {step}}}')
    checkpoint.seal(temporary, final)
    return final


def cut_short(folder: Path) -> None:
    shutil.rmtree(folder / "deep")


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.bin", 650)


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.bin").read_bytes())
    content[123] ^= 4
    (folder / "model.bin").write_bytes(content)


def lose_the_manifest(folder: Path) -> None:
    (folder / manifest.MANIFEST).unlink()


def garble_the_manifest(folder: Path) -> None:
    (folder / manifest.MANIFEST).write_text('{"files": ')


@quick
def test_a_sealed_folder_is_whole_and_leaves_nothing_temporary(tmp_path: Path) -> None:
    final = save(tmp_path, 1, 5)
    assert manifest.verify(final).files.keys() == {"model.bin", "deep/rank-0.json"}
    assert [path.name for path in final.parent.iterdir()] == ["step-000000005"]


@quick
def test_the_newest_step_of_any_attempt_is_found(tmp_path: Path) -> None:
    save(tmp_path, 1, 5)
    save(tmp_path, 2, 9)
    save(tmp_path, 10, 7)
    found, damaged = checkpoint.newest_whole(tmp_path)
    assert found is not None
    assert (found.attempt, found.step, damaged) == (2, 9, [])


@quick
def test_of_two_checkpoints_of_one_step_the_later_attempts_is_found(tmp_path: Path) -> None:
    for attempt in (2, 10, 9):
        save(tmp_path, attempt, 5)
    found, _ = checkpoint.newest_whole(tmp_path)
    assert found is not None
    assert found.attempt == 10


@quick
def test_a_job_without_a_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest_whole(tmp_path / "none") == (None, [])


@quick
@pytest.mark.parametrize("damage", [cut_short, truncate, flip_a_bit, lose_the_manifest, garble_the_manifest])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    save(tmp_path, 1, 3)
    whole = save(tmp_path, 1, 5)
    damage(save(tmp_path, 2, 7))
    damage(save(tmp_path, 2, 9))
    found, damaged = checkpoint.newest_whole(tmp_path)
    assert found is not None
    assert found.path == whole
    assert [sentence[: sentence.index(" is passed over")] for sentence in damaged] == [
        "the checkpoint of step 9 (attempt 2)",
        "the checkpoint of step 7 (attempt 2)",
    ]


@quick
def test_a_checkpoint_that_is_there_and_whole_is_kept_when_sealed_again(tmp_path: Path) -> None:
    first = manifest.verify(save(tmp_path, 1, 5, b"first"))
    save(tmp_path, 1, 5, b"again")
    assert manifest.verify(checkpoint.step_folder(tmp_path / "a1" / "checkpoints", 5)) == first
    assert not list(tmp_path.rglob(".tmp-*"))


@quick
def test_a_damaged_checkpoint_is_replaced_when_sealed_again(tmp_path: Path) -> None:
    truncate(save(tmp_path, 1, 5, b"first"))
    again = save(tmp_path, 1, 5, b"again")
    assert (again / "model.bin").read_bytes() == b"again" * 100
    manifest.verify(again)


@quick
def test_what_an_unfinished_save_left_is_never_found(tmp_path: Path) -> None:
    save(tmp_path, 1, 5)
    temporary = checkpoint.temporary_for(checkpoint.step_folder(tmp_path / "a1" / "checkpoints", 9))
    (temporary / "model.bin").write_bytes(b"half")
    found, damaged = checkpoint.newest_whole(tmp_path)
    assert found is not None
    assert (found.step, damaged) == (5, [])


# Every system call by which seal changes the disk; the process is killed before the n-th of them.
_CRASH = """
import os, signal, sys
from pathlib import Path
from worker import checkpoint

left = int(sys.argv[2])

def dying(call):
    def step(*arguments, **more):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return call(*arguments, **more)
    return step

final = checkpoint.step_folder(Path(sys.argv[1]) / "a1" / "checkpoints", 9)
temporary = checkpoint.temporary_for(final)
(temporary / "model.bin").write_bytes(b"new" * 100)
(temporary / "rank-0.json").write_text("{}")
os.fsync = dying(os.fsync)
os.rename = dying(os.rename)
Path.rename = dying(Path.rename)
Path.write_bytes = dying(Path.write_bytes)
checkpoint.seal(temporary, final)
"""


def test_a_crash_at_any_step_of_sealing_leaves_the_old_one_whole_and_the_new_one_whole_or_absent(
    tmp_path: Path,
) -> None:
    seen = set()
    for calls in range(20):
        job = tmp_path / str(calls)
        save(job, 1, 5)
        ended = subprocess.run([sys.executable, "-c", _CRASH, str(job), str(calls)], check=False, timeout=60)
        found, damaged = checkpoint.newest_whole(job)
        assert found is not None
        assert damaged == []
        seen.add(found.step)
        if ended.returncode == 0:
            break
    else:
        pytest.fail("sealing takes more steps than were tried")
    assert seen == {5, 9}
    assert calls >= 6


@quick
def test_what_is_sealed_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def flushed(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def renamed(path: Path, to: Path) -> Path:
        order.append("rename")
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    save(tmp_path, 1, 5)
    temporary = ".tmp-step-000000005"
    assert set(order[: order.index("rename")]) == {"model.bin", "deep", "rank-0.json", "manifest.json", temporary}
    assert order[order.index("rename") :] == ["rename", "checkpoints"]
