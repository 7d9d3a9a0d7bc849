"""The cluster as a whole: brought up, found again, disturbed, and taken down without a trace."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

from tests.cluster import control_plane, kueue, network, node
from tests.cluster.build import build, program
from tests.cluster.credentials import Credentials
from tests.cluster.images import POD
from tests.cluster.layout import ADMIN, API, FOLDER, HOST, node_name, require_free_ports
from tests.cluster.machine import ClusterError, prepare
from tests.cluster.pki import Authority
from tests.cluster.process import Processes, started_at

START_SECONDS = 120.0
_STATE = FOLDER / "state.json"
_LOCK = FOLDER.with_name(f"{FOLDER.name}.lock")
_USERS = FOLDER.with_name(f"{FOLDER.name}.users")


class Cluster:
    """A cluster that is up.

    Attributes:
        kubeconfig: of its admin.
        api_url: of its API server, from this machine.
        host_address: where pods reach a server of this machine that listens on all its addresses.
        nodes: how many it has; they are numbered from 1, and named `node1` and so on.
        image: of a busybox, on every node.
    """

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self.kubeconfig = ADMIN
        self.api_url = f"https://127.0.0.1:{API}"
        self.host_address = HOST
        self.image = POD.name
        self.processes = Processes(FOLDER)
        self._frozen: set[int] = set()
        self._api_stopped = False

    def kubectl(self, *arguments: str, input: str | None = None, kubeconfig: Path | None = None) -> str:
        """Run kubectl, as the admin or with another kubeconfig, and give what it printed.

        Raises:
            ClusterError: it failed; the message is its own.
        """
        return kubectl(program("kubectl"), kubeconfig or self.kubeconfig, *arguments, input=input)

    @cached_property
    def http(self) -> httpx.Client:
        """A client of the API server, as the admin: milliseconds, where kubectl takes a good part of a second."""
        return Credentials.of(self.kubeconfig).client()

    def freeze(self, number: int) -> None:
        """Stop a node's kubelet as the death of its machine would; its containers run on."""
        if not self.processes.signal(node.kubelet(number), signal.SIGSTOP):
            raise ClusterError(f"There is no kubelet of {node_name(number)} to stop.")
        self._frozen.add(number)

    def thaw(self, number: int) -> None:
        """Let a frozen node go on; nothing if it was not."""
        self.processes.signal(node.kubelet(number), signal.SIGCONT)
        self._frozen.discard(number)

    def load(self, name: str, archive: Path, nodes: Iterable[int] = ()) -> None:
        """Put the image of an archive on these nodes, else on all, where it is not there by its name."""
        lacking = [number for number in nodes or range(1, self.nodes + 1) if not node.has_image(number, name)]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda number: node.import_archive(number, archive), lacking))

    def unload(self, name: str) -> None:
        """Take an image away from all nodes."""
        for number in range(1, self.nodes + 1):
            node.remove_image(number, name)

    def stop_api_server(self, *, kill: bool = False) -> None:
        """End the API server; `kill` gives it no time to answer what it has begun. Nodes and their pods go on."""
        self._api_stopped = True
        if kill:
            self.processes.signal("api-server", signal.SIGKILL)
        self.processes.stop("api-server")

    def start_api_server(self) -> None:
        """Start it again on the same data, and return when it is ready; nothing if it runs."""
        deadline = time.monotonic() + START_SECONDS
        while not self.ready():
            if time.monotonic() > deadline:
                raise ClusterError(f"the API server did not get ready; {FOLDER / 'log'} tells why.")
            # Its port may be taken a moment longer by what was connected to it: it is started until it stays.
            self.processes.again("api-server")
            time.sleep(0.1)
        self._api_stopped = False

    def heal(self) -> None:
        """Undo what this process disturbed: another session on the same cluster may be in the middle of its own."""
        for number in self._frozen.copy():
            self.thaw(number)
        if self._api_stopped:
            self.start_api_server()

    def kill_pods(self, namespace: str) -> None:
        """Kill all that runs in a namespace at once: a kubelet that has begun a long grace does not cut it short."""
        for number in range(1, self.nodes + 1):
            node.kill_pods_of(number, namespace)

    def start_kueue(self) -> None:
        """Start Kueue with a cluster queue of 2 CPUs, `team-a`; nothing if it runs."""
        kueue.start(self.processes, self.kubectl)

    def local_queue(self, namespace: str) -> str:
        """Make a queue for the Jobs of a namespace, and give its name."""
        self.kubectl("apply", "-f", "-", input=kueue.local_queue(namespace))
        return kueue.QUEUE

    def ready(self) -> bool:
        """Whether the API server says that it is."""
        with contextlib.suppress(httpx.HTTPError, OSError):
            return self.http.get("/readyz", timeout=5).status_code == 200
        return False

    def _nodes_ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            listed = self.http.get("/api/v1/nodes").json().get("items", [])
            conditions = [c for item in listed for c in item["status"].get("conditions", [])]
            return self.nodes == sum(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        return False

    def _wait(self, what: str, condition: Callable[[], bool], deadline: float) -> None:
        while not condition():
            dead = [name for name in self.processes.names() if not self.processes.alive(name)]
            if dead:
                raise ClusterError(f"{dead[0]} ended at once: {self.processes.last_words(dead[0])}")
            if time.monotonic() > deadline:
                raise ClusterError(f"{what} did not get ready; {FOLDER / 'log'} tells why.")
            time.sleep(0.1)

    def _start(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        numbers = range(1, self.nodes + 1)
        network.make_bridges(self.nodes)
        authority = Authority(FOLDER / "pki")
        authority.create()
        control_plane.start_api_server(self.processes, authority)
        for number in numbers:
            node.start_containerd(self.processes, number)
        self._wait("the API server", self.ready, deadline)
        control_plane.start_controllers(self.processes, authority)
        for number in numbers:
            node.import_images(number, deadline)
            node.start_kubelet(self.processes, authority, number)
        network.start(self.processes)
        self._wait("every node", self._nodes_ready, deadline)


def up(nodes: int, *, keep: bool, say: Callable[[str], None] = print) -> Cluster:
    """Bring a cluster up. With `keep` it stays until `down`; else it is this process's, and for no one else.

    Raises:
        ClusterError: another one is up, or this machine cannot; nothing is left of it then.
    """
    prepare(say)
    build(say)
    with _alone():
        if (state := _state()) is not None:
            if state["kept"] and _lives():
                raise ClusterError(
                    f"A cluster of {state['nodes']} nodes is up already: `python -m tests.cluster down`."
                )
            if _owner_lives(state):
                raise ClusterError(f"The tests of process {state['owner']} have a cluster up; one machine holds one.")
        _tidy()
        require_free_ports(nodes)
        network.require_free()
        FOLDER.mkdir()
        owner = os.getpid()
        _STATE.write_text(json.dumps({"nodes": nodes, "kept": keep, "owner": owner, "began": started_at(owner)}))
        cluster = Cluster(nodes)
        try:
            cluster._start()
        except BaseException:
            _tidy()
            raise
        return cluster


@contextlib.contextmanager
def at_hand(nodes: int = 2, say: Callable[[str], None] = print) -> Iterator[Cluster]:
    """The cluster that `up` left running for all, which `down` refuses to take away in this block; else a new one.

    Raises:
        ClusterError: there is one that does not answer, or none and this machine cannot have one.
    """
    with _USERS.open("a") as users:
        with contextlib.suppress(OSError):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _undo_what_was_left()  # nobody else is here, so nobody is going to
        fcntl.flock(users, fcntl.LOCK_SH)
        if (found := kept()) is not None:
            yield found
            return
    own = up(nodes, keep=False, say=say)
    try:
        yield own
    finally:
        down()


def kept() -> Cluster | None:
    """The cluster that `up` left running for all, if there is one.

    Raises:
        ClusterError: there is one, and its API server does not come back.
    """
    state = _state()
    if state is None or not state["kept"] or not _lives():
        return None
    cluster = Cluster(state["nodes"])
    deadline = time.monotonic() + 60
    while not cluster.ready():
        if time.monotonic() > deadline:  # longer than another session's tests stop it for
            raise ClusterError(
                "The cluster that is up does not answer: `python -m tests.cluster down`, then `up` again."
            )
        time.sleep(0.2)
    return cluster


def _undo_what_was_left() -> None:
    """Undo the disturbances of tests that were killed in their middle."""
    state = _state()
    if state and state["kept"] and _lives():
        cluster = Cluster(state["nodes"])
        for number in range(1, cluster.nodes + 1):
            cluster.thaw(number)
        cluster.start_api_server()


def down(*, force: bool = False) -> None:
    """Take this machine's cluster down, whole or half; nothing if there is none.

    Raises:
        ClusterError: the tests of another process have it, or use it, unless `force` says that they do not matter.
    """
    with _alone(), _USERS.open("a") as users:
        state = _state()
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if state and state["kept"] and not force:
                raise ClusterError(
                    "Tests are running on this cluster; wait for their end, or take it from them: "
                    "`python -m tests.cluster down --force`."
                ) from None
        if state and not state["kept"] and state["owner"] != os.getpid() and _owner_lives(state):
            raise ClusterError(f"The tests of process {state['owner']} use this cluster. End them first.")
        _tidy()


def kubectl(program: Path | str, kubeconfig: Path, *arguments: str, input: str | None = None) -> str:
    """Run a kubectl with a kubeconfig, and give what it printed.

    Raises:
        ClusterError: it failed; the message is its own.
    """
    done = subprocess.run(
        [str(program), f"--kubeconfig={kubeconfig}", *arguments],
        input=input,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One command at a time brings a cluster up or down."""
    with _LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ClusterError(
                "Another command is bringing a cluster up or down on this machine; wait for it."
            ) from None
        yield


def _state() -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads(_STATE.read_text())
    except (OSError, ValueError):
        return None
    return state


def _owner_lives(state: dict[str, Any]) -> bool:
    return bool(state["began"]) and started_at(state["owner"]) == state["began"]


def _lives() -> bool:
    """Whether it still runs: a machine that was started again keeps the folder, and nothing else."""
    return Processes(FOLDER).alive("etcd")


def _tidy() -> None:
    """End and remove all of a cluster that may be half there: what this machine runs for others is never touched."""
    if not FOLDER.exists():
        return
    processes = Processes(FOLDER)
    numbers = [int(folder.name.removeprefix("node")) for folder in FOLDER.glob("node[0-9]*") if folder.is_dir()]
    for name in ("kube-proxy", "coredns", kueue.NAME):
        processes.stop(name)
    for number in numbers:
        node.stop(processes, number)
    for name in processes.names():
        processes.stop(name)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if Path(m).is_relative_to(FOLDER)), reverse=True):
        subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)
    for number in numbers:
        node.remove_traces(number)
    network.remove()
    shutil.rmtree(FOLDER)
