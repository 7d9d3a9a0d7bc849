"""The image that the tests build on, in the place of one from a registry: a Debian with Python, made by debootstrap."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.cluster import build
from tests.cluster.machine import ClusterError, install, programs

SUITE = "bookworm"  # its Python is 3.11, as that of the images' own default
NAME = f"localhost/rlhf-test-base:{SUITE}"
TOOLS = {"buildah": programs("buildah"), "debootstrap": programs("debootstrap")}
PACKAGES = ("ca-certificates", "python3", "python3-venv")
# What no container needs, or what is this machine's own.
_LEFT_OUT = (
    *("dev/*", "proc/*", "run/*", "sys/*", "tmp/*", "etc/hostname", "etc/resolv.conf"),
    *("usr/share/doc/*", "usr/share/info/*", "usr/share/locale/*", "usr/share/man/*"),
    *("var/cache/*", "var/lib/apt/lists/*", "var/log/*"),
)


def cache() -> Path:
    """Where bases and layers lie, for every checkout of this user."""
    return build.cache().with_name("images")


def prepare(say: Callable[[str], None]) -> None:
    """Install what builds images.

    Raises:
        ClusterError: it cannot be installed.
    """
    install("Building images", TOOLS, "or leave out tests/images", say)


def archive(say: Callable[[str], None]) -> Path:
    """The root file system as a tar file: made the first time, in a minute or two.

    Raises:
        ClusterError: debootstrap failed.
    """
    described = hashlib.sha256(repr((SUITE, PACKAGES, _LEFT_OUT)).encode()).hexdigest()[:16]
    made = cache() / f"base-{described}.tar"
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "base.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second one waits, and finds it made
        if not made.exists():
            say(f"Making a Debian {SUITE} with Python (once; a minute or two) …")
            _make(made)
            for older in cache().glob("base-*.tar"):
                if older != made:
                    older.unlink()
    return made


def _make(tar: Path) -> None:
    root, unfinished = cache() / "base.root", tar.with_suffix(".unfinished")
    _remove(root)
    try:
        _run(["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root), *_mirror()])
        excluded = [f"--exclude=./{pattern}" for pattern in _LEFT_OUT]
        _run(
            [
                "tar",
                f"--directory={root}",
                "--numeric-owner",
                "--sort=name",
                *excluded,
                f"--file={unfinished}",
                "-c",
                ".",
            ]
        )
        unfinished.rename(tar)
    finally:
        _remove(root)


def _mirror() -> list[str]:
    """Where this machine's apt gets Debian from; debootstrap's own where it gets it from nowhere, as on Ubuntu."""
    wanted = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages"]
    told = subprocess.run(wanted, capture_output=True, text=True, check=False).stdout
    found = re.search(rf"^Debian {SUITE} (\S+)$", told, re.MULTILINE) or re.search(r"^Debian [a-z]+ (\S+)$", told, re.M)
    return [found[1]] if found else []


def _remove(root: Path) -> None:
    # An interrupted debootstrap leaves these mounted: what is removed below them would be this machine's.
    for mounted in ("proc", "sys"):
        if os.path.ismount(root / mounted):
            _run(["umount", "--lazy", str(root / mounted)])
    shutil.rmtree(root, ignore_errors=True)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-1000:]
        raise ClusterError(f"`{' '.join(command)}` failed: {said}")
