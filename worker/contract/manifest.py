"""Manifests: the files of a checkpoint or a model with their hashes, and the check that a folder is whole."""

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

MANIFEST = "manifest.json"
LINEAGE = "lineage.json"
"""In a model's folder: where it came from."""
_CHUNK = 4 * 2**20


class Damaged(ValueError):
    """A folder that is not what its manifest says, with the first file that is wrong."""


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """All files of a folder by their relative path. A folder without its manifest is not whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    files: dict[str, Entry]

    def encode(self) -> bytes:
        """The bytes of `manifest.json`: the same files give the same bytes."""
        return json.dumps(self.model_dump(), sort_keys=True, indent=1).encode() + b"\n"

    @property
    def sha256(self) -> str:
        """The hash that names the folder as a whole."""
        return hashlib.sha256(self.encode()).hexdigest()

    @property
    def total_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.bytes for entry in self.files.values())


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def describe(folder: Path) -> Manifest:
    """The manifest of a folder as it is now, `manifest.json` itself left out."""
    files = {
        path.relative_to(folder).as_posix(): Entry(bytes=path.stat().st_size, sha256=file_sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    return Manifest(files=files)


def tree_hash(path: Path) -> str:
    """The hash by which an input is known: a file's own, or that of its folder's files, names and bytes alike.

    Of a folder that carries a manifest it is the manifest's hash, as long as the folder is whole.
    """
    return file_sha256(path) if path.is_file() else describe(path).sha256


def read(folder: Path) -> Manifest:
    """The manifest that a folder carries. Raises Damaged."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise Damaged(f"{folder.name} has no {MANIFEST}") from None
    except (OSError, ValidationError) as error:
        raise Damaged(f"{folder.name}/{MANIFEST} cannot be read: {type(error).__name__}") from None


def verify(folder: Path) -> Manifest:
    """The manifest of a folder whose files are all there, with the right bytes. Raises Damaged."""
    manifest = read(folder)
    for name, entry in manifest.files.items():
        path = folder / name
        if ".." in Path(name).parts or not path.is_file():
            raise Damaged(f"{folder.name}/{name} is missing")
        if path.stat().st_size != entry.bytes:
            raise Damaged(f"{folder.name}/{name} has {path.stat().st_size} bytes, not {entry.bytes}")
        if file_sha256(path) != entry.sha256:
            raise Damaged(f"{folder.name}/{name} does not have its hash")
    return manifest
