"""Models: what finished jobs handed over."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from client.files import save
from client.problems import Ambiguous, Problem
from client.records import Model
from client.transport import Transport
from worker.contract import manifest


class Models:
    """`client.models`."""

    def __init__(self, transport: Transport):
        self._transport = transport

    def all(
        self, *, name: str | None = None, kind: str | None = None, job: str | None = None, limit: int | None = None
    ) -> Iterator[Model]:
        """Models, newest first."""
        pages = self._transport.pages("/v1/models", name=name, kind=kind, job=job, limit=limit)
        return (Model.model_validate(entry) for entry in pages)

    def get(self, model: str) -> Model:
        """One model, by its id, `NAME` (the newest version) or `NAME@VERSION`. Raises Problem (404)."""
        return Model.model_validate(self._transport.get(f"/v1/models/{quote(model, safe='@')}"))

    def lineage(self, model: str) -> dict[str, Any]:
        """What a model was made from: job, attempt, checkpoint, data. Raises Problem (404)."""
        found: dict[str, Any] = self._transport.get(f"/v1/models/{quote(model, safe='@')}/lineage")["lineage"]
        return found

    def delete(self, model: str) -> None:
        """Removes a model. Raises Problem (409: a job that is not over needs it)."""
        self._transport.call("DELETE", f"/v1/models/{quote(model, safe='@')}")

    def find(self, text: str, *, kind: str = "model") -> Model:
        """The model that a person means by an id, or a name with or without `@VERSION`. Raises Ambiguous."""
        text = text.removeprefix("models/")
        name, _, version = text.partition("@")
        if kind != "model":
            for model in self.all(name=name, kind=kind):
                if version in ("", str(model.version)):
                    return self.get(model.id)
        else:
            try:
                return self.get(text)
            except Problem as error:
                if error.status != 404:
                    raise
        raise Ambiguous(f"No {kind} is called `{text}`; `rlhf models list` shows what there is.")

    def download(self, model: str, to: Path, *, seen: Callable[[int], None] = lambda done: None) -> Path:
        """Writes a model's folder to `to` and checks it by its manifest. `seen` gets the bytes of each file done.

        What is there already with the right hash is not fetched again. Raises Problem, OSError.
        """
        to.mkdir(parents=True, exist_ok=True)
        save(self._transport, f"/v1/models/{model}/files/{manifest.MANIFEST}", to / manifest.MANIFEST)
        for name, entry in manifest.read(to).files.items():
            place = to / name
            if ".." in Path(name).parts or Path(name).is_absolute():
                raise manifest.Damaged(f"the manifest names a file outside its folder: {name}")
            whole = False
            with contextlib.suppress(OSError):
                whole = place.stat().st_size == entry.bytes and manifest.file_sha256(place) == entry.sha256
            if not whole:
                place.parent.mkdir(parents=True, exist_ok=True)
                save(self._transport, f"/v1/models/{model}/files/{quote(name)}", place, entry.sha256)
            seen(entry.bytes)
        manifest.verify(to)
        return to
