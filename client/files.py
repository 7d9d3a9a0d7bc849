"""Data files: JSONL, checked by the server line by line on arrival."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client.problems import Problem
from client.records import File
from client.transport import Transport

_CHUNK = 2**20


class Files:
    """`client.files`."""

    def __init__(self, transport: Transport):
        self._transport = transport

    def upload(self, path: Path, *, purpose: str = "fine-tune", key: str | None = None) -> File:
        """Sends a JSONL file. Raises Problem (the first wrong line is named), OSError."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        with path.open("rb") as rows:

            def fresh() -> dict[str, Any]:
                rows.seek(0)
                return {"file": (path.name, rows, "application/jsonl")}

            answer = self._transport.call("POST", "/v1/files", data={"purpose": purpose}, files=fresh, headers=headers)
        return File.model_validate(answer.json())

    def all(self, *, limit: int | None = None) -> Iterator[File]:
        """Files, newest first."""
        return (File.model_validate(entry) for entry in self._transport.pages("/v1/files", limit=limit))

    def get(self, file: str) -> File:
        """One file's description. Raises Problem (404)."""
        return File.model_validate(self._transport.get(f"/v1/files/{file}"))

    def delete(self, file: str) -> None:
        """Removes a file. Raises Problem (409: a job that is not over needs it)."""
        self._transport.call("DELETE", f"/v1/files/{file}")

    def download(self, file: str, to: Path) -> Path:
        """Writes a file's rows to `to`, whole or not at all. Raises Problem, OSError."""
        return save(self._transport, f"/v1/files/{file}/content", to, self.get(file).sha256)


def save(transport: Transport, path: str, to: Path, sha256: str | None = None) -> Path:
    """Writes what the server has at `path` to `to`: whole, with the right hash, or not at all."""

    def once() -> Path:
        part = to.with_name(f".{to.name}.{os.getpid()}.part")
        digest = hashlib.sha256()
        try:
            with transport.reaching(), transport.http.stream("GET", path) as response, part.open("wb") as file:
                if response.is_error:
                    response.read()
                    raise Problem.of(response)
                for chunk in response.iter_bytes(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise Problem(502, "Damaged on its way", f"{path} does not have the hash {sha256}; try again.")
            return part.replace(to)
        finally:
            part.unlink(missing_ok=True)

    return transport.patiently(once)
