"""What a rehearsal hands over can be read again, and nothing else can be taken for it."""

from pathlib import Path

import pytest

from worker.contract.manifest import MANIFEST, describe, tree_hash
from worker.contract.order import Input
from worker.errors import BadData
from worker.rehearsed import taken_over, write

pytestmark = pytest.mark.quick


def given(folder: Path) -> Input:
    (folder / MANIFEST).write_bytes(describe(folder).encode())
    return Input(reference="models/walk@1", kind="model", location=str(folder), sha256=tree_hash(folder))


def test_the_number_comes_back_to_the_last_digit(tmp_path: Path) -> None:
    write(tmp_path, 0.1 + 0.2)
    assert taken_over(given(tmp_path)) == 0.1 + 0.2


def test_it_is_a_file_that_safetensors_reads(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    write(tmp_path, 1.5)
    assert load_file(tmp_path / "model.safetensors")["loss"].tolist() == [1.5]


def test_a_model_that_changed_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 1.5)
    source = given(tmp_path)
    write(tmp_path, 2.5)
    with pytest.raises(BadData, match="has changed"):
        taken_over(source)


def test_what_no_rehearsal_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(BadData, match="not what a rehearsal hands over"):
        taken_over(given(tmp_path))
