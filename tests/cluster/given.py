"""A cluster that somebody else runs, named by TEST_KUBECONFIG, in the place of one of our own."""

import os
import shutil
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import httpx
import pytest

from tests.cluster.cluster import kubectl
from tests.cluster.credentials import Credentials
from tests.cluster.machine import ClusterError

KUBECONFIG = "TEST_KUBECONFIG"
HOST_ADDRESS = "TEST_HOST_ADDRESS"
IMAGE = "TEST_IMAGE"


def _not_ours(what: str) -> None:
    pytest.skip(f"{what} needs nodes of our own: {KUBECONFIG} names a cluster that is not to be disturbed.")


class GivenCluster:
    """What `Cluster` is, without the faults: tests that ask for those are skipped.

    Its nodes must see this machine's folders at the same paths, as those of a k3s beside the tests do.
    """

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig.resolve()
        if not self.kubeconfig.exists():
            raise ClusterError(f"{KUBECONFIG}={kubeconfig}: there is no such file.")
        self.image = os.environ.get(IMAGE, "busybox:1")
        self.api_url = str(self.http.base_url).rstrip("/")
        self.nodes = len(self.http.get("/api/v1/nodes").raise_for_status().json()["items"])

    @property
    def host_address(self) -> str:
        address = os.environ.get(HOST_ADDRESS)
        if not address:
            pytest.skip(f"Pods must reach this machine: set {HOST_ADDRESS} to an address of it that they can reach.")
        return address

    def kubectl(self, *arguments: str, input: str | None = None, kubeconfig: Path | None = None) -> str:
        """As `Cluster.kubectl`, by the kubectl in PATH."""
        program = shutil.which("kubectl")
        if program is None:
            raise ClusterError(f"With {KUBECONFIG}, kubectl must be in PATH.")
        return kubectl(program, kubeconfig or self.kubeconfig, *arguments, input=input)

    @cached_property
    def http(self) -> httpx.Client:
        return Credentials.of(self.kubeconfig).client()

    def freeze(self, number: int) -> None:
        _not_ours("Stopping a kubelet")

    def thaw(self, number: int) -> None:
        _not_ours("Stopping a kubelet")

    def load(self, name: str, archive: Path, nodes: Iterable[int] = ()) -> None:
        _not_ours("An image that is built here")

    def unload(self, name: str) -> None:
        _not_ours("An image that is built here")

    def stop_api_server(self, *, kill: bool = False) -> None:
        _not_ours("Stopping the API server")

    def start_api_server(self) -> None:
        _not_ours("Stopping the API server")

    def start_kueue(self) -> None:
        _not_ours("Installing Kueue")

    def local_queue(self, namespace: str) -> str:
        _not_ours("Installing Kueue")
        return ""

    def kill_pods(self, namespace: str) -> None:
        """Its pods end when their grace is over."""

    def heal(self) -> None:
        """Nothing was disturbed."""
