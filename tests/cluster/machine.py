"""What the machine must have before a cluster can run on it, and how the missing parts are installed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

CNI_PLUGINS = Path("/usr/lib/cni")
BUSYBOX = Path("/bin/busybox")


class ClusterError(Exception):
    """Why there is no cluster, in a sentence for the person who must act."""


def _static_busybox() -> bool:
    # Debian's other package, `busybox`, has the same path and needs libraries that an image from scratch lacks.
    return BUSYBOX.exists() and b"/ld-linux" not in BUSYBOX.read_bytes()


def programs(*names: str) -> Callable[[], bool]:
    """Whether these are in root's path, asked when it is called."""
    return lambda: all(shutil.which(name) for name in names)


# Debian's package: is what we need of it here?
PACKAGES: dict[str, Callable[[], bool]] = {
    "containerd": programs("containerd", "ctr"),
    "runc": programs("runc"),
    "containernetworking-plugins": (CNI_PLUGINS / "bridge").exists,
    "busybox-static": _static_busybox,
    "nftables": programs("nft"),
    "iproute2": programs("ip"),
    "openssl": programs("openssl"),
}


def prepare(say: Callable[[str], None]) -> None:
    """Install what is missing.

    Raises:
        ClusterError: this machine cannot run nodes, or what is missing cannot be installed.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        raise ClusterError(
            "Kubernetes nodes run on Linux, as root: they make networks, mounts and cgroups. Run this as root, "
            "or name a cluster of yours: TEST_KUBECONFIG=/path/to/kubeconfig."
        )
    install("The test cluster", PACKAGES, "or set TEST_KUBECONFIG to a cluster of yours", say)


def install(who: str, packages: Mapping[str, Callable[[], bool]], otherwise: str, say: Callable[[str], None]) -> None:
    """Install those of Debian's packages of which what is needed is not here; `otherwise`: what else can be done.

    Raises:
        ClusterError: they cannot be installed.
    """
    missing = [package for package, is_here in packages.items() if not is_here()]
    if not missing:
        return
    names = " ".join(missing)
    if not shutil.which("apt-get"):
        raise ClusterError(
            f"{who} needs these Debian packages, and there is no apt-get to install them: {names}. "
            f"Install what carries the same programs here, {otherwise}."
        )
    say(f"Installing {names} …")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *missing]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr or done.stdout).strip()[-500:]
            raise ClusterError(f"`{' '.join(command)}` failed, and {who[0].lower()}{who[1:]} needs {names}: {last}")
    if still := [package for package in missing if not packages[package]()]:
        raise ClusterError(f"Installed, and yet not usable: {' '.join(still)}. Are they in root's PATH?")
