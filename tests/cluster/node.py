"""A node of the cluster: its own containerd and kubelet, in a cgroup tree and a folder of its own."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from tests.cluster import images
from tests.cluster.build import program
from tests.cluster.layout import (
    FOLDER,
    HOST,
    bridge,
    cgroup,
    kubelet_health_port,
    kubelet_port,
    node_address,
    node_folder,
    node_name,
)
from tests.cluster.machine import CNI_PLUGINS, ClusterError
from tests.cluster.pki import Authority
from tests.cluster.process import Processes

_CGROUPS = Path("/sys/fs/cgroup")
_NETWORK = "rlhf-test-cluster"
_CNI_RESULTS = Path("/var/lib/cni/results")
_CONTAINER_LOGS = Path("/var/log/containers")

_CONTAINERD = """\
version = 2
root = "{folder}/images"
state = "{folder}/containers"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  sandbox_image = "{sandbox}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{folder}/network"
"""
# restrict_oom_score_adj: where root may not lower its own score, every sandbox would die at its start.


def start_containerd(processes: Processes, node: int) -> None:
    """Start the node's containerd; `import_images` waits for it."""
    folder = node_folder(node)
    (folder / "network").mkdir(parents=True)
    (folder / "network" / "10-bridge.conflist").write_text(json.dumps(_bridge_network(node)))
    configuration = folder / "containerd.toml"
    configuration.write_text(
        _CONTAINERD.format(folder=folder, socket=_socket(node), sandbox=images.SANDBOX.name, plugins=CNI_PLUGINS)
    )
    processes.start(f"containerd{node}", ["containerd", "--config", str(configuration)])


def import_images(node: int, deadline: float) -> None:
    """Put the images on the node, as soon as its containerd answers.

    Raises:
        ClusterError: it did not by the deadline, in seconds of the monotonic clock.
    """
    while _ctr(node, "version").returncode:
        if time.monotonic() > deadline:
            raise ClusterError(f"containerd of {node_name(node)} does not answer.")
        time.sleep(0.1)
    for image in (images.POD, images.SANDBOX):
        archive = FOLDER / f"{image.name.replace('/', '-').replace(':', '-')}.tar"
        if not archive.exists():
            images.save(image, archive)
        import_archive(node, archive)


def import_archive(node: int, archive: Path) -> None:
    """Put the image of an archive, as `docker save` writes them, on the node.

    Raises:
        ClusterError: its containerd did not take it.
    """
    imported = _ctr(node, "images", "import", str(archive))
    if imported.returncode:
        raise ClusterError(f"{archive.name} could not be put on {node_name(node)}: {imported.stderr.strip()}")


def remove_image(node: int, name: str) -> None:
    """Take an image away, with the layers that no other has; nothing if it is not there."""
    _ctr(node, "images", "remove", "--sync", name)


def has_image(node: int, name: str) -> bool:
    """Whether an image of this name is on the node."""
    return name in _ctr(node, "images", "list", "--quiet").stdout.split()


def start_kubelet(processes: Processes, authority: Authority, node: int) -> None:
    """Start the node's kubelet, which registers it."""
    folder, name, address = node_folder(node), node_name(node), node_address(node)
    _make_cgroups(node)
    credentials = authority.kubeconfig(FOLDER / f"{name}.conf", f"/O=system:nodes/CN=system:node:{name}")
    certificate, key = authority.issue(f"{name}-server", f"/CN={name}", f"DNS:{name}", f"IP:{address}")
    configuration = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{_socket(node)}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup(node)}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "port": kubelet_port(node),
        "healthzPort": kubelet_health_port(node),
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": 12,
        "serializeImagePulls": False,
        "imageGCHighThresholdPercent": 100,  # the images come from no registry: once collected, they are gone
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "makeIPTablesUtilChains": False,
        "podLogsDir": str(folder / "logs"),
        "volumePluginDir": str(folder / "volume-plugins"),
        "clusterDNS": [HOST],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(certificate),
        "tlsPrivateKeyFile": str(key),
    }
    file = folder / "kubelet.json"
    file.write_text(json.dumps(configuration))
    processes.start(
        kubelet(node),
        [
            str(program("kubelet")),
            f"--config={file}",
            f"--kubeconfig={credentials}",
            f"--hostname-override={name}",
            f"--node-ip={address}",
            f"--root-dir={folder / 'kubelet'}",
            f"--cert-dir={folder / 'kubelet-certificates'}",
        ],
    )


def kubelet(node: int) -> str:
    """The name of its kubelet among the cluster's processes."""
    return f"kubelet{node}"


def kill_pods_of(node: int, namespace: str) -> None:
    """Kill every container of a namespace on the node, whatever grace its kubelet is waiting out."""
    ours = f'labels."io.kubernetes.pod.namespace"=={namespace}'
    for container in _ctr(node, "containers", "list", "--quiet", ours).stdout.split():
        _ctr(node, "tasks", "kill", "--signal=SIGKILL", container)


def stop(processes: Processes, node: int) -> None:
    """End the kubelet, every container and containerd, also those that an interrupted session left behind."""
    processes.stop(kubelet(node))
    if tasks := _ctr(node, "tasks", "list", "-q").stdout.split():
        _ctr(node, "tasks", "delete", "--force", *tasks)
    _kill_pods(node)
    processes.stop(f"containerd{node}")
    # A container's supervisor outlives containerd. Its command line names our socket, so it is ours.
    for pid, command in _commands():
        if "containerd-shim" in command[0] and str(_socket(node)) in command:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def remove_traces(node: int) -> None:
    """Take away what kubelets and network plugins keep outside the cluster's folder."""
    for tree in _cgroup_trees(node):
        for folder in sorted((p for p in tree.rglob("*") if p.is_dir()), reverse=True):
            _remove_cgroup(folder)
        _remove_cgroup(tree)
    for result in _CNI_RESULTS.glob(f"{_NETWORK}-*"):
        container = result.name.removeprefix(f"{_NETWORK}-").rpartition("-")[0]
        for ours in (result, _CNI_RESULTS / f"cni-loopback-{container}-lo"):
            ours.unlink(missing_ok=True)
    for link in _CONTAINER_LOGS.glob("*.log"):
        if link.is_symlink() and link.readlink().is_relative_to(FOLDER):
            link.unlink(missing_ok=True)


def _bridge_network(node: int) -> dict[str, object]:
    subnet = f"{node_address(node).rpartition('.')[0]}.0/24"
    addresses = {
        "type": "host-local",
        "dataDir": str(node_folder(node) / "addresses"),
        "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugin = {"type": "bridge", "bridge": bridge(node), "isGateway": True, "hairpinMode": True, "ipam": addresses}
    return {"cniVersion": "0.4.0", "name": _NETWORK, "plugins": [plugin]}


def _socket(node: int) -> Path:
    return node_folder(node) / "containerd.sock"


def _ctr(node: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["ctr", "--connect-timeout=2s", f"--address={_socket(node)}", "--namespace=k8s.io", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _cgroup_trees(node: int) -> list[Path]:
    """The node's folder in each hierarchy: one on cgroup v2, one for every controller on v1."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS / cgroup(node)]
    return [hierarchy / cgroup(node) for hierarchy in _CGROUPS.iterdir() if hierarchy.is_dir()]


def _make_cgroups(node: int) -> None:
    if (_CGROUPS / "cgroup.controllers").exists():
        for controller in ("cpu", "cpuset", "memory", "pids"):
            with contextlib.suppress(OSError):
                (_CGROUPS / "cgroup.subtree_control").write_text(f"+{controller}")
    for tree in _cgroup_trees(node):
        with contextlib.suppress(OSError):  # a hierarchy that is mounted read-only is none that the kubelet uses
            tree.mkdir(exist_ok=True)
    # On cgroup v1 a new cpuset has no processors, and no process can enter it.
    cpuset = _CGROUPS / "cpuset"
    for file in ("cpuset.cpus", "cpuset.mems"):
        if (cpuset / file).exists():
            (cpuset / cgroup(node) / file).write_text((cpuset / file).read_text())


def _kill_pods(node: int) -> None:
    """Kill what still runs in the node's cgroups: nothing but its pods ever enters them."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        pids = {
            int(pid)
            for tree in _cgroup_trees(node)
            for processes in tree.rglob("cgroup.procs")
            for pid in _lines(processes)
        }
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _remove_cgroup(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _commands() -> list[tuple[int, list[str]]]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if command := file.read_text(errors="replace").split("\0")[:-1]:
                found.append((int(file.parent.name), command))
    return found
