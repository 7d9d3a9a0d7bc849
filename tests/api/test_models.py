"""Models: what they are, what they were made from, and every byte of them."""

import io
import tarfile
from pathlib import Path

from tests.api.conftest import Plane, paths, write_model
from tests.api.test_inputs import register
from worker.contract.manifest import MANIFEST, verify


async def test_a_model_is_found_by_id_by_name_and_by_version(plane: Plane, tmp_path: Path) -> None:
    first = await register(plane, write_model(tmp_path / "m1"), 1)
    second = await register(plane, write_model(tmp_path / "m2"), 2)
    await register(plane, write_model(tmp_path / "m3"), 2, "adapter")
    for wanted, id in ((first, first), ("good", second), ("good@1", first), ("good@2", second)):
        assert (await plane.http.get(f"/v1/models/{wanted}")).json()["id"] == id
    for wanted in ("good@3", "none", "..", "good@0"):
        assert (await plane.http.get(f"/v1/models/{wanted}")).status_code == 404
    shown = (await plane.http.get("/v1/models", params={"name": "good", "kind": "model"})).json()["data"]
    assert [model["version"] for model in shown] == [2, 1]
    assert (await plane.http.get(f"/v1/models/{first}/lineage")).json()["lineage"] == {"job": "job-x"}


async def test_a_downloaded_archive_is_the_model_whole(plane: Plane, tmp_path: Path) -> None:
    id = await register(plane, write_model(tmp_path / "m1"))
    answer = await plane.http.get(f"/v1/models/{id}/download")
    assert answer.headers["content-type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path / "out", filter="data")
    manifest = verify(tmp_path / "out" / "good-1")
    assert manifest.sha256 == (await plane.http.get(f"/v1/models/{id}")).json()["sha256"]


async def test_only_files_that_the_manifest_names_are_handed_out(plane: Plane, tmp_path: Path) -> None:
    id = await register(plane, write_model(tmp_path / "m1"))
    listed = (await plane.http.get(f"/v1/models/{id}/files")).json()["data"]
    assert [file["path"] for file in listed] == ["config.json", "model.safetensors"]
    for name in ("config.json", "model.safetensors", MANIFEST):
        assert (await plane.http.get(f"/v1/models/{id}/files/{name}")).status_code == 200
    for name in ("../../../../rlhf.db", "%2e%2e/manifest.json", "none", "/etc/passwd"):
        answer = await plane.http.get(f"/v1/models/{id}/files/{name}")
        assert answer.status_code == 404
        paths(answer)


async def test_a_deleted_model_is_gone_from_the_store(plane: Plane, tmp_path: Path) -> None:
    id = await register(plane, write_model(tmp_path / "m1"))
    folder = plane.control.store.root / "jobs/job-x/a1/outputs/model"
    assert folder.is_dir()
    assert (await plane.http.delete(f"/v1/models/{id}")).status_code == 204
    assert not folder.exists()
    assert (await plane.http.get(f"/v1/models/{id}")).status_code == 404
