"""Attempts whose store is a bucket, and what is said of it to be true at any moment."""

import hashlib
import os
from pathlib import Path
from typing import Any

from tests.process.attempts import JOB, Attempt
from worker.contract import manifest
from worker.contract.order import Input
from worker.contract.protocol import Checkpoint
from worker.storage import ObjectStore


class BucketAttempt(Attempt):
    """One attempt at a rehearsal, of one node, which works in a folder of its own."""

    def __init__(
        self,
        home: Path,
        store: ObjectStore,
        environment: dict[str, str],
        attempt: int = 1,
        inputs: dict[str, Input] | None = None,
        **given: Any,
    ):
        super().__init__(home, attempt, **given)
        self.scratch = home / f"scratch-{attempt}"
        self.order = self.order.model_copy(
            update={
                "store": store.url,
                "scratch": str(self.scratch),
                "inputs": inputs or {},
                "log_folder": str(self.scratch / self.order.folder / "log"),
                "echo": True,
            }
        )
        (self.folder / "spec.json").write_text(self.order.model_dump_json())
        self.environment = environment

    def start(self) -> "BucketAttempt":
        before = dict(os.environ)
        os.environ |= self.environment
        try:
            super().start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        return self


def whole_checkpoints(store: ObjectStore) -> dict[str, str]:
    """The checkpoints in the store that are whole, each with its manifest's hash; fails where one is not."""
    found = {}
    for entry in store.manifests(f"jobs/{JOB}"):
        if "/checkpoints/" not in entry.path:
            continue
        described = store.manifest(entry.path)
        for name, file in described.files.items():
            assert hashlib.sha256(store.read(f"{entry.path}/{name}")).hexdigest() == file.sha256, name
        found[entry.path] = described.sha256
    return found


def assert_all_told_is_there(store: ObjectStore, told: list[Checkpoint]) -> None:
    """Every checkpoint that was told of lies there, whole, with the hash that was told."""
    there = whole_checkpoints(store)
    for checkpoint in told:
        assert there.get(checkpoint.path) == checkpoint.sha256, checkpoint.path


def in_store(store: ObjectStore, path: str, content: bytes) -> Input:
    """A file in the store, as an order names it."""
    store.put_bytes(path, content)
    digest = hashlib.sha256(content).hexdigest()
    return Input(reference=path, kind="file", location=f"{store.url}/{path}", sha256=digest)


def model_in_store(store: ObjectStore, path: str, folder: Path) -> Input:
    """A sealed folder put into the store, as an order names it."""
    described = store.put_folder(folder, path)
    assert described == manifest.read(folder)
    return Input(reference=path, kind="model", location=f"{store.url}/{path}", sha256=described.sha256)
