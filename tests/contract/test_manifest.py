"""A folder is whole or it is Damaged, with the file that is wrong."""

from pathlib import Path

import pytest

from worker.contract import manifest

pytestmark = pytest.mark.quick


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.bin").write_bytes(b"weights")
    (tmp_path / "deep" / "b.bin").write_bytes(b"state" * 100)
    (tmp_path / manifest.MANIFEST).write_bytes(manifest.describe(tmp_path).encode())
    return tmp_path


def test_a_whole_folder_verifies_to_the_same_hash(folder: Path) -> None:
    assert manifest.verify(folder).sha256 == manifest.describe(folder).sha256
    assert manifest.verify(folder).total_bytes == 507


def test_one_flipped_bit_is_found(folder: Path) -> None:
    content = bytearray((folder / "deep" / "b.bin").read_bytes())
    content[250] ^= 1
    (folder / "deep" / "b.bin").write_bytes(content)
    with pytest.raises(manifest.Damaged, match="deep/b.bin does not have its hash"):
        manifest.verify(folder)


def test_a_file_cut_short_is_found(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"weigh")
    with pytest.raises(manifest.Damaged, match="a.bin has 5 bytes, not 7"):
        manifest.verify(folder)


def test_a_missing_file_is_found(folder: Path) -> None:
    (folder / "a.bin").unlink()
    with pytest.raises(manifest.Damaged, match="a.bin is missing"):
        manifest.verify(folder)


@pytest.mark.parametrize("content", [b"", b"{", b'{"files": {"a.bin": {"bytes": 7}}}'])
def test_a_manifest_cut_short_is_found(folder: Path, content: bytes) -> None:
    (folder / manifest.MANIFEST).write_bytes(content)
    with pytest.raises(manifest.Damaged, match="cannot be read"):
        manifest.verify(folder)


def test_a_folder_without_a_manifest_is_not_whole(folder: Path) -> None:
    (folder / manifest.MANIFEST).unlink()
    with pytest.raises(manifest.Damaged, match="has no manifest"):
        manifest.verify(folder)


def test_a_manifest_that_names_a_path_outside_is_damaged(folder: Path) -> None:
    text = (folder / manifest.MANIFEST).read_text().replace("a.bin", "../a.bin")
    (folder / manifest.MANIFEST).write_text(text)
    with pytest.raises(manifest.Damaged, match="is missing"):
        manifest.verify(folder)
