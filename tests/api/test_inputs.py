"""References, resolved at POST: each failure a problem with its path in the spec."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from api.folder import FolderStore
from api.settings import Settings
from api.store.database import utcnow
from api.store.tables import ModelRow
from tests.api.conftest import DIALOGUE, Plane, paths, rows, write_model
from worker.contract.manifest import MANIFEST, describe, tree_hash


@pytest.fixture
def allowed(settings: Settings) -> Path:
    """The folder that specs may name by path."""
    return settings.allowed_paths[0]


@pytest.fixture
def model(allowed: Path) -> Path:
    """A model with 64 positions."""
    return write_model(allowed / "model", positions=64)


@pytest.fixture
def data(allowed: Path) -> Path:
    """Dialogues."""
    path = allowed / "rows.jsonl"
    path.write_bytes(rows(3, DIALOGUE))
    return path


def sft(model: Any, data: Any, **stage: Any) -> dict[str, Any]:
    return {"stage": {"type": "sft", "model": str(model), "data": str(data), "max_length": 32, **stage}}


async def refused(plane: Plane, spec: dict[str, Any]) -> dict[str, str]:
    """What is wrong with a spec, by path."""
    before = (await plane.http.get("/v1/jobs")).json()
    answer = await plane.http.post("/v1/jobs", json=spec)
    assert answer.status_code == 422, answer.text
    paths(answer)
    assert (await plane.http.get("/v1/jobs")).json() == before
    return {error["path"]: error["message"] for error in answer.json()["errors"]}


async def test_paths_become_absolute_with_their_hash(plane: Plane, model: Path, data: Path) -> None:
    inputs = (await plane.submit(sft(model, data)))["inputs"]
    assert inputs["stage.model"]["location"] == str(model)
    assert inputs["stage.model"]["sha256"] == tree_hash(model)
    assert inputs["stage.data.train"]["sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert inputs["stage.data.train"]["rows"] == 3


async def test_a_model_that_changed_has_another_hash(plane: Plane, model: Path, data: Path) -> None:
    before = (await plane.submit(sft(model, data)))["inputs"]["stage.model"]["sha256"]
    (model / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0[]")
    after = (await plane.submit(sft(model, data)))["inputs"]["stage.model"]["sha256"]
    assert after == tree_hash(model) != before


async def test_all_references_that_lead_nowhere_are_named_at_once(plane: Plane, allowed: Path) -> None:
    spec = sft("models/none", "files/file-aaaaaaaaaaaa") | {"evaluate": {"data": str(allowed / "none.jsonl")}}
    problems = await refused(plane, spec)
    assert set(problems) == {"stage.model", "stage.data.train", "evaluate.data"}


async def test_a_path_out_of_the_allowed_folders_is_refused(
    plane: Plane, allowed: Path, model: Path, data: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_bytes(rows(1, DIALOGUE))
    (allowed / "link.jsonl").symlink_to(secret)
    linked = write_model(allowed / "linked")
    (linked / "extra.safetensors").symlink_to(secret)
    for path in (secret, allowed / "link.jsonl", "/etc/passwd", tmp_path / "allowed-too"):
        assert "allowed" in (await refused(plane, sft(model, path)))["stage.data.train"]
    assert "allowed" in (await refused(plane, sft(linked, data)))["stage.model"]
    dotted = f"{allowed}/../secret.jsonl"
    assert ".." in str(await refused(plane, sft(model, dotted)))


async def test_links_in_a_circle_are_refused(plane: Plane, allowed: Path, model: Path, data: Path) -> None:
    (allowed / "one").symlink_to(allowed / "two")
    (allowed / "two").symlink_to(allowed / "one")
    assert set(await refused(plane, sft(model, allowed / "one"))) == {"stage.data.train"}
    (model / "extra").symlink_to(model / "extra")
    assert set(await refused(plane, sft(model, data))) == {"stage.model"}


async def test_a_link_inside_the_allowed_folders_is_followed(
    plane: Plane, allowed: Path, model: Path, data: Path
) -> None:
    (allowed / "link.jsonl").symlink_to(data)
    inputs = (await plane.submit(sft(model, allowed / "link.jsonl")))["inputs"]
    assert inputs["stage.data.train"]["location"] == str(data)


async def test_a_data_file_by_path_is_checked_line_by_line(plane: Plane, model: Path, data: Path) -> None:
    data.write_bytes(rows(6, DIALOGUE) + b"{}\n")
    assert "line 7" in (await refused(plane, sft(model, data)))["stage.data.train"]
    data.write_bytes(b"")
    assert "no rows" in (await refused(plane, sft(model, data)))["stage.data.train"]


async def test_rows_of_the_wrong_kind_for_the_stage_are_refused(plane: Plane, model: Path, data: Path) -> None:
    data.write_bytes(rows(3))
    assert "messages" in (await refused(plane, sft(model, data)))["stage.data.train"]


async def test_a_sequence_longer_than_the_model_s_positions_is_refused(plane: Plane, model: Path, data: Path) -> None:
    problems = await refused(plane, sft(model, data, max_length=65))
    assert "64 positions" in problems["stage.max_length"]
    await plane.submit(sft(model, data, max_length=64))


async def test_the_positions_of_a_gguf_file_are_read_from_it(plane: Plane, allowed: Path, data: Path) -> None:
    from gguf import GGUFWriter

    path = allowed / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(40)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert "40 positions" in (await refused(plane, sft(path, data, max_length=41)))["stage.max_length"]
    inputs = (await plane.submit(sft(path, data, max_length=40)))["inputs"]
    assert inputs["stage.model"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60))
    assert "damaged" in (await refused(plane, sft(path, data)))["stage.model"]


async def test_weights_in_pickles_are_refused(plane: Plane, allowed: Path, data: Path) -> None:
    folder = write_model(allowed / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "safetensors" in (await refused(plane, sft(folder, data)))["stage.model"]


async def test_an_adapter_beside_a_model_is_refused(plane: Plane, model: Path, data: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    assert "holds an adapter beside a model" in (await refused(plane, sft(model, data)))["stage.model"]


@pytest.mark.parametrize("name", ["n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx"])
async def test_positions_are_found_by_whatever_name_the_architecture_gives_them(
    plane: Plane, model: Path, data: Path, name: str
) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "odd", name: 31}))
    assert "31" in (await refused(plane, sft(model, data)))["stage.max_length"]


async def test_a_hub_name_that_nobody_knows_is_refused_in_time(plane: Plane, data: Path) -> None:
    assert "hub" in (await refused(plane, sft("nobody/nothing", data)))["stage.model"]
    assert "hub name" in (await refused(plane, sft("not a//name", data)))["stage.model"]


_FIND = """
import asyncio
from api import hub
print(asyncio.run(hub.find("some/one", 5.0)).sha256)
"""


class _Hub(BaseHTTPRequestHandler):
    """A hub that shows one model to everybody."""

    def do_GET(self) -> None:
        """Notes who asks, and answers."""
        self.server.asked.append(self.headers["Authorization"])  # type: ignore[attr-defined]
        body = json.dumps({"_id": "1", "id": "some/one", "modelId": "some/one", "sha": "f" * 40}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_the_hub_is_asked_as_workers_ask_it_without_a_token() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        server.asked = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # The library reads both when it is imported.
        address = f"http://127.0.0.1:{server.server_address[1]}"
        environment = os.environ | {"HF_ENDPOINT": address, "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", _FIND]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        server.shutdown()
    assert found.stdout.strip() == "f" * 40, found.stderr
    assert set(server.asked) == {None}  # type: ignore[attr-defined]


async def test_a_local_cluster_has_one_node(plane: Plane) -> None:
    spec = {"stage": {"type": "rehearse"}, "resources": {"nodes": 2}}
    assert set(await refused(plane, spec)) == {"resources.nodes"}


async def register(plane: Plane, folder: Path, version: int = 1, kind: str = "model", name: str = "good") -> str:
    """What the operator does with a job's output."""
    manifest = describe(folder)
    (folder / MANIFEST).write_bytes(manifest.encode())
    path = f"jobs/job-x/a{version}/outputs/{kind}"
    store: Any = plane.control.store
    if isinstance(store, FolderStore):
        (store.root / path).parent.mkdir(parents=True, exist_ok=True)
        folder.rename(store.root / path)
    else:
        store.objects.put_folder(folder, path)
    id = f"model-{version}{kind}"
    async with plane.control.database.transaction() as session:
        session.add(
            ModelRow(
                id=id, project_id="default", name=name, version=version, kind=kind, job_id="job-x", attempt=version,
                path=path, bytes=manifest.total_bytes, sha256=manifest.sha256, lineage={"job": "job-x"},
                created_at=utcnow(),
            )
        )  # fmt: skip
    return id


async def test_a_registered_model_is_pinned_to_its_version(plane: Plane, data: Path, tmp_path: Path) -> None:
    await register(plane, write_model(tmp_path / "m1"), 1)
    await register(plane, write_model(tmp_path / "m2", positions=128), 2)
    newest = (await plane.submit(sft("models/good", data)))["inputs"]["stage.model"]
    first = (await plane.submit(sft("models/good@1", data)))["inputs"]["stage.model"]
    assert (newest["reference"], first["reference"]) == ("models/good@2", "models/good@1")
    assert newest["sha256"] == tree_hash(plane.control.store.root / newest["location"]) != first["sha256"]


async def test_a_registered_model_with_one_bit_flipped_is_refused(plane: Plane, data: Path, tmp_path: Path) -> None:
    await register(plane, write_model(tmp_path / "m1"))
    weights = plane.control.store.root / "jobs/job-x/a1/outputs/model/model.safetensors"
    weights.write_bytes(b"\x03" + weights.read_bytes()[1:])
    assert "damaged" in (await refused(plane, sft("models/good", data)))["stage.model"]
