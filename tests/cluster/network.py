"""Bridges for pods, ClusterIPs by kube-proxy, and names by CoreDNS: one of each serves all nodes of this machine."""

import contextlib
import json
import subprocess
from pathlib import Path

from tests.cluster.build import program
from tests.cluster.layout import (
    ADMIN,
    FOLDER,
    HOST,
    POD_NETWORK,
    PROXY_HEALTH,
    PROXY_METRICS,
    bridge,
    node_address,
    node_name,
)
from tests.cluster.machine import ClusterError
from tests.cluster.process import Processes

_SETTINGS = ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables")
_BEFORE = FOLDER / "settings-before.json"


def require_free() -> None:
    """Refuse to share this machine with another cluster's network.

    Raises:
        ClusterError: an address or a table of ours is another's.
    """
    if f" {HOST}/" in _run("ip", "-o", "-4", "address"):
        raise ClusterError(
            f"Another network of this machine has the test cluster's address {HOST}: `ip -4 address` shows which. "
            "Take it down (`ip link delete NAME`), or set TEST_KUBECONFIG to a cluster of yours."
        )
    if "table ip kube-proxy" in _run("nft", "list", "tables"):
        raise ClusterError(
            "Another kube-proxy has its rules on this machine (`nft list table ip kube-proxy`). Stop that cluster, "
            "`nft delete table ip kube-proxy`, or name it: TEST_KUBECONFIG=/path/to/kubeconfig."
        )


def make_bridges(nodes: int) -> None:
    """A bridge for each node, and packets forwarded between them."""
    settings = {name: Path("/proc/sys", name) for name in _SETTINGS if Path("/proc/sys", name).exists()}
    _BEFORE.write_text(json.dumps({name: file.read_text() for name, file in settings.items()}))
    for node in range(1, nodes + 1):
        # With an address of its own: else it takes the lowest of its ports', which changes as pods come and go, and the
        # pods that know the last one reach nobody until they ask anew.
        _run("ip", "link", "add", bridge(node), "address", f"02:00:00:00:00:{node:02x}", "type", "bridge")
        _run("ip", "address", "add", f"{node_address(node)}/24", "dev", bridge(node))
        _run("ip", "link", "set", bridge(node), "up")
    for file in settings.values():
        file.write_text("1")


def start(processes: Processes) -> None:
    """Start kube-proxy and CoreDNS."""
    processes.start(
        "kube-proxy",
        [
            str(program("kube-proxy")),
            f"--kubeconfig={ADMIN}",
            f"--hostname-override={node_name(1)}",
            "--proxy-mode=nftables",
            f"--cluster-cidr={POD_NETWORK}",
            f"--healthz-bind-address=127.0.0.1:{PROXY_HEALTH}",
            f"--metrics-bind-address=127.0.0.1:{PROXY_METRICS}",
        ],
    )
    corefile = FOLDER / "Corefile"
    # No time to live: a test's Service is new, and its name must not be remembered as unknown.
    kubernetes = f"kubernetes cluster.local {{\n    kubeconfig {ADMIN}\n    ttl 0\n  }}"
    corefile.write_text(f".:53 {{\n  bind {HOST}\n  errors\n  {kubernetes}\n}}\n")
    processes.start("coredns", [str(program("coredns")), "-conf", str(corefile)])


def remove() -> None:
    """Take away what was made; nothing, where nothing was."""
    if not _BEFORE.exists():
        return
    for line in _run("ip", "-o", "-4", "address").splitlines():
        name, _, address = line.split()[1:4]
        if name.startswith("rlhf") and address.startswith(POD_NETWORK.removesuffix("0.0/16")):
            _run("ip", "link", "delete", name)
    for family in ("ip", "ip6"):
        with contextlib.suppress(ClusterError):
            _run("nft", "delete", "table", family, "kube-proxy")
    for name, value in json.loads(_BEFORE.read_text()).items():
        Path("/proc/sys", name).write_text(value)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout
