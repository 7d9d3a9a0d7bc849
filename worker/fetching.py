"""What an attempt needs from a store in a bucket before its ranks start: its inputs, and a checkpoint to go on from."""

import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker import checkpoint
from worker.contract.manifest import MANIFEST, Damaged, Manifest
from worker.contract.order import Input, Order
from worker.contract.protocol import Level
from worker.errors import BadData
from worker.storage import NotThere, ObjectStore

Event = Callable[[str, str, Level], None]


@dataclass(frozen=True)
class Chosen:
    """The checkpoint that is here now, by its path in the store; None: there is none, or `damaged` says why not."""

    path: str | None
    damaged: str = ""


class Fetching:
    """One node's. The folder has the store's layout; what is fetched lies there as it lies in the store."""

    def __init__(self, store: ObjectStore, order: Order, folder: Path, node: int):
        self._store, self._order, self._folder, self._node = store, order, folder, node
        self._inputs_here = False
        self._checkpoint: Path | None = None
        self.converted: set[str] = set()
        """The converted models that the store has, by the hashes of what they were made from."""

    def newest(self, refused: Sequence[str], event: Event) -> Chosen:
        """Fetches the inputs, and the job's newest checkpoint that is whole. Raises BadData, OSError."""
        self._fetch_inputs()
        # What earlier attempts left on this machine is not what counts, nor the same on all nodes.
        for left in (self._folder / self._order.job_folder).glob("a*/checkpoints"):
            shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):
            # Nobody goes on with what earlier attempts had not put there whole, and it may be paid for.
            self._store.abort_uploads(self._order.job_folder)
        found = checkpoint.candidates(entry.path for entry in self._store.manifests(self._order.job_folder))
        for step, _, attempt, path in sorted(found, reverse=True):
            if path in refused:
                continue
            if not (chosen := self.one(path)).damaged:
                return chosen
            said = f"the checkpoint of step {step} (attempt {attempt}) is passed over: {chosen.damaged}"
            event("CheckpointDamaged", said, "warning")
        return Chosen(None)

    def one(self, path: str | None) -> Chosen:
        """Fetches the inputs, and this node's part of a checkpoint. Raises BadData, OSError."""
        self._fetch_inputs()
        if path is None:
            return Chosen(None)
        into = self._folder / path
        try:
            if self._order.spec.resources.nodes == 1:
                self._store.fetch_folder(path, into)
            else:
                self._fetch_part(path, into)
        except (Damaged, NotThere) as error:
            shutil.rmtree(into, ignore_errors=True)
            return Chosen(None, str(error) or type(error).__name__)
        self._checkpoint = into
        # Curves go on where they were. One that is gone is no reason not to.
        for entry in self._store.list(f"{path.partition('/checkpoints/')[0]}/tensorboard"):
            with contextlib.suppress(Damaged, NotThere):
                self._store.fetch_file(entry.path, self._folder / entry.path)
        return Chosen(path)

    def forget(self) -> None:
        """The ranks have read the checkpoint, and go on: it takes no room here any more."""
        if self._checkpoint is not None:
            shutil.rmtree(self._checkpoint, ignore_errors=True)
            self._checkpoint = None

    def _fetch_part(self, path: str, into: Path) -> None:
        """The files of this node, and a manifest that tells of them alone."""
        prefix = f"node-{self._node}/"
        parts = into.with_name(f"{checkpoint.TEMPORARY}part-{into.name}")
        described = self._store.fetch_folder(path, parts, lambda name: name.startswith(prefix))
        if not described.files:
            # Made on fewer nodes than this attempt has: what it says of itself is on the first.
            prefix = "node-0/"
            described = self._store.fetch_folder(path, parts, lambda name: name.startswith(prefix))
        if not described.files:
            raise Damaged(f"{into.name} is not of several nodes")
        shutil.rmtree(into, ignore_errors=True)
        (parts / prefix).rename(into)
        own = Manifest(files={name.removeprefix(prefix): entry for name, entry in described.files.items()})
        (into / MANIFEST).write_bytes(own.encode())
        shutil.rmtree(parts)

    def _fetch_inputs(self) -> None:
        if self._inputs_here:
            return
        for source in self._order.inputs.values():
            path = self._store.place.path_of_url(source.location)
            if path is not None:
                self._fetch_input(source, path)
        self._inputs_here = True

    def _fetch_input(self, source: Input, path: str) -> None:
        """A file by its hash, a model by its manifest. Raises BadData for what is spoilt or gone."""
        into = self._folder / path
        hashes = [source.sha256]
        try:
            if source.kind == "file":
                self._store.fetch_file(path, into, source.sha256)
            else:
                described = self._store.fetch_folder(path, into)
                hashes += [entry.sha256 for name, entry in described.files.items() if name.endswith(".gguf")]
        except NotThere:
            raise BadData(f"{source.reference} is not there any more") from None
        except Damaged as error:
            raise BadData(f"{source.reference} is not what it was when the job was accepted: {error}") from None
        for made_from in hashes:
            cached = f"cache/models/{made_from}"
            with contextlib.suppress(Damaged):
                self._store.fetch_folder(cached, self._folder / cached)
                self.converted.add(made_from)
