"""Where the cluster is on this machine: its folder, addresses and ports, away from those of a usual cluster."""

import socket
import tempfile
from pathlib import Path

from tests.cluster.machine import ClusterError

FOLDER = Path(tempfile.gettempdir()) / "rlhf-cluster"

# The first node's bridge: the control plane, the DNS and whatever the tests serve answer pods here.
HOST = "10.88.1.1"
POD_NETWORK = "10.88.0.0/16"
SERVICE_NETWORK = "10.96.0.0/16"
FIRST_SERVICE = "10.96.0.1"

API = 16443
ETCD, ETCD_PEER = 12379, 12380
CONTROLLER_MANAGER, SCHEDULER = 11257, 11259
PROXY_HEALTH, PROXY_METRICS = 11256, 11249
KUEUE_WEBHOOK = 11445
ADMIN = FOLDER / "admin.conf"


def kubelet_port(node: int) -> int:
    return 11250 + 10 * node


def kubelet_health_port(node: int) -> int:
    return 11251 + 10 * node


def node_name(node: int) -> str:
    return f"node{node}"


def node_address(node: int) -> str:
    """Its bridge on this machine, and the gateway of its pods."""
    return f"10.88.{node}.1"


def node_folder(node: int) -> Path:
    return FOLDER / node_name(node)


def bridge(node: int) -> str:
    return f"rlhf{node}"


def cgroup(node: int) -> str:
    """A kubelet removes the cgroups of pods that it does not know, so each has a tree of its own."""
    return f"rlhf-{node_name(node)}"


def require_free_ports(nodes: int) -> None:
    """Look before anything is started: a program that cannot bind says so only in its log.

    Raises:
        ClusterError: another program listens on a port of ours.
    """
    wanted = {
        API: "the API server",
        ETCD: "etcd",
        ETCD_PEER: "etcd's peers",
        CONTROLLER_MANAGER: "the controller manager",
        SCHEDULER: "the scheduler",
        PROXY_HEALTH: "kube-proxy's health",
        PROXY_METRICS: "kube-proxy's metrics",
    }
    for node in range(1, nodes + 1):
        wanted[kubelet_port(node)] = f"the kubelet of {node_name(node)}"
        wanted[kubelet_health_port(node)] = f"the health of {node_name(node)}"
    taken = [f"{port} ({what})" for port, what in wanted.items() if _taken(port)]
    if taken:
        raise ClusterError(
            f"Other programs listen on ports that the test cluster needs: {', '.join(taken)}. "
            "`ss -tlnp` names them; end them, or set TEST_KUBECONFIG to a cluster of yours."
        )


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return True
    return False
