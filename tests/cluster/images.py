"""The two images on every node: a busybox for pods, and the sandbox that holds a pod's network."""

import hashlib
import io
import json
import platform
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.machine import BUSYBOX

COMMANDS = (
    "sh",
    "sleep",
    "cat",
    "ls",
    "echo",
    "env",
    "id",
    "kill",
    "mkdir",
    "touch",
    "nslookup",
    "wget",
    "true",
    "false",
)


@dataclass(frozen=True)
class Image:
    """A name as pods write it, and what it runs by default."""

    name: str
    command: tuple[str, ...]


POD = Image("local/busybox:1", ("/bin/sh",))
SANDBOX = Image("local/pause:1", ("/bin/sleep", "2147483647"))


def save(image: Image, archive: Path) -> None:
    """Write an image of a static busybox alone, in the form of `docker save`: one layer, of some 2 MB."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for folder, mode in (("bin", 0o755), ("tmp", 0o1777)):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
        _file(tar, "bin/busybox", BUSYBOX.read_bytes(), 0o755)
        for command in COMMANDS:
            link = tarfile.TarInfo(f"bin/{command}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Cmd": image.command, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [image.name], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, mode="w") as tar:
        _file(tar, "layer.tar", layer.getvalue())
        _file(tar, "config.json", json.dumps(config).encode())
        _file(tar, "manifest.json", json.dumps(manifest).encode())


def _file(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))
