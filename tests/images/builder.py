"""Builds images by buildah, into a store of its own: nothing of this machine's other images is read or changed."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.machine import ClusterError
from tests.images import base

REPOSITORY = Path(__file__).parents[2]
CANARY = "a-password-of-the-package-index"
"""In the pip.conf of every build, in a comment: a secret that no image may hold."""
# What a pip.conf may say of where packages come from.
_OF_PIP = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "cert")

_UNUSED_SECONDS = 24 * 3600
_ARCHIVES = 3  # of an image in several versions, the newest


@dataclass(frozen=True)
class Built:
    """An image: its name, which pods write, and the archive that brings it to nodes."""

    name: str
    archive: Path


class Builder:
    """Builds the image of one Dockerfile. Its layers stay in the user's cache until what they are made of changes."""

    def __init__(self, folder: str, say: Callable[[str], None], *, layers: bool = True) -> None:
        """`folder`: `api` or `worker`, which has the Dockerfile. Without `layers`, no stage is kept for a next time."""
        self._layers = str(layers).lower()
        self.dockerfile = REPOSITORY / folder / "Dockerfile"
        self._name = f"localhost/rlhf-{folder}"
        self._say = say
        made_of = [REPOSITORY / "pyproject.toml", REPOSITORY / "constraints.txt", self.dockerfile]
        digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in made_of)).hexdigest()[:16]
        self._folder = base.cache() / f"{folder}-{digest}"
        # Where mounts are counted: it must not outlive them.
        self._counted = Path("/run") / f"rlhf-images-{folder}-{digest}"

    def build(self, **arguments: str) -> Built:
        """The image, built with these arguments from what the repository holds now; what was built before is taken.

        Raises:
            ClusterError: with the end of what the build printed.
        """
        base.prepare(self._say)
        root = base.archive(self._say)
        with self._alone():
            self._make_base(root)
            given = [f"--build-arg={name}={value}" for name, value in {"BASE": base.NAME, **arguments}.items()]
            self._say(f"Building {self._name} …")
            told = self._folder / "id"
            with self._secrets() as found:
                secrets = [f"--secret=id={name},src={path}" for name, path in found.items()]
                self._buildah(
                    *("build", "--isolation=chroot", f"--layers={self._layers}", "--pull-never", *given, *secrets),
                    *(f"--file={self.dockerfile}", f"--tag={self._name}", f"--iidfile={told}", str(REPOSITORY)),
                )
            id = told.read_text().strip().removeprefix("sha256:")
            name, archive = f"{self._name}:{id[:12]}", self._folder / f"{id}.tar"
            if not archive.exists():
                # Another checkout's tests may be about to read theirs.
                for older in sorted(self._folder.glob("*.tar*"), key=_last_used)[: -_ARCHIVES + 1]:
                    older.unlink()
                unfinished = archive.with_suffix(".tar.unfinished")
                self._buildah("push", id, f"docker-archive:{unfinished}:{name}")
                unfinished.rename(archive)
            os.utime(archive)
            return Built(name, archive)

    def forget_layers(self) -> None:
        """Remove all that was built but the archive: the layers of the worker's image take as much again, twice."""
        with self._alone():
            self._remove_layers()

    def forget(self) -> None:
        """Remove all that was built."""
        with self._alone():
            self._remove_layers()
        _remove(self._folder)

    def _remove_layers(self) -> None:
        self._buildah("rmi", "--all", "--force")
        (self._folder / "base").unlink(missing_ok=True)
        for folder in (self._folder / "layers", self._folder / "tmp", self._counted):
            _remove(folder)

    def _make_base(self, root: Path) -> None:
        described = self._folder / "base"
        if described.exists() and described.read_text() == root.name:
            return
        (self._folder / "base.Dockerfile").write_text(
            f"FROM scratch\nADD {root.name} /\nENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
        )
        self._buildah(
            *("build", "--isolation=chroot", f"--file={self._folder / 'base.Dockerfile'}", f"--tag={base.NAME}"),
            *(f"--ignorefile={os.devnull}", str(root.parent)),
        )
        described.write_text(root.name)

    @contextmanager
    def _secrets(self) -> Iterator[dict[str, Path]]:
        """What the build's pip must know to find packages as this machine's does."""
        told = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
        ).stdout
        # Of a variable, and of each of pip's files; the first is what counts for pip.
        found = {name: value for name, value in re.findall(r"^\S+\.([a-z-]+)='(.*)'$", told, re.MULTILINE)}
        found |= dict(re.findall(r"^:env:\.([a-z-]+)='(.*)'$", told, re.MULTILINE))
        secrets = {}
        if certificates := found.get("cert"):
            secrets["ca.crt"] = Path(certificates)
            found["cert"] = "/run/secrets/ca.crt"
        lines = [f"# {CANARY}", "[global]", *(f"{name} = {found[name]}" for name in _OF_PIP if name in found)]
        # An index's URL may have a password in it: nobody else reads it, and it goes with the build.
        with tempfile.TemporaryDirectory() as folder:
            secrets["pip.conf"] = Path(folder) / "pip.conf"
            secrets["pip.conf"].write_text("\n".join(lines) + "\n")
            yield secrets

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (self._folder / "tmp").mkdir(exist_ok=True)
            self._forget_the_unused()
            yield

    def _forget_the_unused(self) -> None:
        """Remove what was built from other dependencies, by a checkout that has not asked for it for long."""
        for lock in base.cache().glob(f"{self._folder.name.partition('-')[0]}-*.lock"):
            if time.time() - lock.stat().st_mtime > _UNUSED_SECONDS:
                _remove(lock.with_suffix(""))
                lock.unlink()

    def _buildah(self, *arguments: str) -> str:
        # The driver is that of the nodes' containerds: where they can mount their layers, it can.
        places = [f"--root={self._folder / 'layers'}", f"--runroot={self._counted}", "--storage-driver=overlay"]
        environment = {**os.environ, "TMPDIR": str(self._folder / "tmp")}
        done = subprocess.run(
            ["buildah", *places, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = (done.stdout + done.stderr).strip()[-3000:]
            raise ClusterError(f"`buildah {arguments[0]}` failed for {self._name}: {said}")
        return done.stdout


def _last_used(archive: Path) -> float:
    return archive.stat().st_mtime


def _remove(folder: Path) -> None:
    # A build that was killed leaves its stages mounted.
    mounts = [Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if mount.is_relative_to(folder)), reverse=True):
        subprocess.run(["umount", "--lazy", str(mount)], capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)
