"""What is in an image, read from its archive: every layer, also what a later one hides."""

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast


@dataclass(frozen=True)
class Entry:
    """A file, folder or link of a layer. `path` starts with `/`."""

    path: PurePosixPath
    tar: tarfile.TarFile
    info: tarfile.TarInfo

    @property
    def bytes(self) -> bytes:
        """Its content; none of what is no file."""
        file = self.tar.extractfile(self.info) if self.info.isreg() else None
        return file.read() if file is not None else b""


class Contents:
    """An archive that is open.

    Attributes:
        configuration: of the image: its `config`, its `history`, and more.
        layers: their digests.
    """

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        (manifest,) = json.loads(self._read("manifest.json").read())
        self._files: list[str] = manifest["Layers"]
        self.configuration: dict[str, Any] = json.loads(self._read(manifest["Config"]).read())
        self.layers: list[str] = self.configuration["rootfs"]["diff_ids"]

    def entries(self, *layers: str) -> Iterator[Entry]:
        """All that is in these layers, else in all."""
        for layer in layers or self.layers:
            with tarfile.open(fileobj=self._read(self._files[self.layers.index(layer)])) as tar:
                for info in tar:
                    yield Entry(PurePosixPath("/") / info.name, tar, info)

    def _read(self, name: str) -> IO[bytes]:
        return cast(IO[bytes], self._archive.extractfile(name))


@contextmanager
def contents(archive: Path) -> Iterator[Contents]:
    """Open an archive."""
    with tarfile.open(archive) as tar:
        yield Contents(tar)
