"""A control plane on the cluster: an API process and operator processes, each started, killed and frozen by itself."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from client import Client
from client.records import Job
from tests.cluster.cluster import Cluster
from tests.e2e.plane import free_port, story, wait_until
from tests.kubernetes.namespace import REPOSITORY, Namespace
from tests.kubernetes.observer import Observer

ROLE = REPOSITORY / "manifests" / "jobs" / "operator-role.yaml"


@dataclass
class Process:
    """`python -m api`, in one role."""

    command: list[str]
    environment: dict[str, str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> "Process":
        """Starts it; does not wait until it is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, start_new_session=True, cwd=REPOSITORY
            )
        return self

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: no time for anything."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait(timeout=60)
            self.process = None

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        assert self.process is not None
        self.signal(signal.SIGTERM)
        status = self.process.wait(timeout=60)
        self.process = None
        return status

    def freeze(self) -> None:
        """SIGSTOP: it neither acts nor answers."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None


class Plane:
    """One control plane: `api` serves, `operator` acts; `another_operator` makes a second one."""

    def __init__(
        self,
        folder: Path,
        cluster: Cluster,
        namespace: Namespace,
        databases: Callable[[], str],
        kubeconfig: Path,
        pod: dict[str, Any] | None = None,
        **settings: str,
    ):
        self._databases = databases
        self._made = 0
        self.cluster, self.namespace, self.folder = cluster, namespace, folder
        self.kubeconfig = kubeconfig
        folder.mkdir(parents=True, exist_ok=True)
        worker_pod = folder / "worker-pod.yaml"
        worker_pod.write_text(yaml.safe_dump(namespace.pod_additions | (pod or {})))
        port, worker_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.client = Client(self.url)
        self.worker_port = worker_port
        self.settings = {
            **{k: v for k, v in os.environ.items() if k != "KUBECONFIG"},
            "CLUSTER": "kubernetes", "NAMESPACE": namespace.name, "WORKER_POD": str(worker_pod),
            "WORKER_HOST": cluster.host_address, "WORKER_PORT": str(worker_port),
            "WORKER_URL": f"http://{cluster.host_address}:{worker_port}",
            "STORE": namespace.store.as_uri(), "STORE_CLAIM": namespace.store_claim,
            "DATABASE_URL": databases(), "PORT": str(port), "BACK_OFF": "0.5", "ALLOWED_PATHS": str(REPOSITORY),
            **settings,
        }  # fmt: skip
        self.api = self.process("api", "api")
        self.operator = self.process("operator", "operator")
        self._others: list[Process] = []

    def process(self, role: str, name: str, **settings: str) -> Process:
        """One more, not started yet, with these settings over the others."""
        data = self.folder / name
        environment = {**self.settings, "KUBECONFIG": str(self.kubeconfig), **settings}
        command = [sys.executable, "-m", "api", "--role", role, "--data", str(data)]
        return Process(command, environment, self.folder / f"{name}.log")

    def start(self) -> "Plane":
        """Starts the API, waits until it is ready, and starts the operator."""
        self.api.start()
        wait_until(self._ready, what=f"a ready API (its log: {self.api.log})")
        self.operator.start()
        return self

    def another_operator(self, **settings: str) -> Process:
        """A second operator, not started yet."""
        made = self.process("operator", f"operator-{len(self._others) + 2}", **settings)
        self._others.append(made)
        return made

    def another(
        self, namespace: Namespace | None = None, kubeconfig: Path | None = None, **pod: Any
    ) -> "AbstractContextManager[Plane]":
        """Another control plane on the same cluster, with a database of its own; `pod` changes what its admin gives."""
        self._made += 1
        folder = self.folder / f"another-{self._made}"
        return running(
            folder, self.cluster, namespace or self.namespace, self._databases, kubeconfig or self.kubeconfig, pod
        )

    def _ready(self) -> bool:
        assert self.api.alive, self.api.log.read_text()[-4000:]
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Kills what runs, and prints the end of the logs for a test that failed."""
        for process in (self.operator, *self._others, self.api):
            process.kill()
            if process.log.exists():
                print(f"--- {process.log.name}\n{process.log.read_text()[-3000:]}")

    def comes_to(self, job: str, *phases: str, seconds: float = 120.0) -> Job:
        """The job, once it is in one of the phases."""

        def there() -> Job | None:
            found = self.client.jobs.get(job)
            return found if found.phase in phases else None

        try:
            return wait_until(there, seconds=seconds, what=f"{' or '.join(phases)} of {job}")
        except AssertionError:
            print(self.story(job))
            raise

    def reaches_step(self, job: str, step: int, seconds: float = 120.0) -> None:
        """Returns once the job has made this step."""

        def there() -> bool:
            progress = self.client.jobs.get(job).progress
            return progress is not None and progress.step >= step

        wait_until(there, seconds=seconds, what=f"step {step} of {job}")

    def story(self, job: str) -> str:
        """The job's events and its objects, for a person who must find out."""
        kubectl = self.cluster.kubectl
        objects = kubectl("-n", self.namespace.name, "get", "jobs,pods", "-l", f"rlhf-operator/job={job}", "-o", "wide")
        told = kubectl("-n", self.namespace.name, "get", "events", "--field-selector", "type=Warning")
        warnings = [line for line in told.splitlines() if job in line]
        return "\n".join([story(self.client, job), objects, *warnings])

    def objects(self, kinds: str = "jobs,pods,secrets,services,networkpolicies") -> list[str]:
        """What there is of attempts in the namespace, as `kind/name`."""
        found = self.cluster.kubectl(
            "-n", self.namespace.name, "get", kinds, "-l", "app.kubernetes.io/managed-by=rlhf-operator", "-o", "name"
        )
        return found.split()

    def is_empty(self, seconds: float = 60.0) -> None:
        """Waits until nothing is left of any attempt."""
        try:
            wait_until(lambda: not self.objects(), seconds=seconds, what="the end of all objects")
        except AssertionError:
            print(self.objects()[:20])
            raise

    def pods(self, job: str) -> list[dict[str, Any]]:
        """The job's pods, by their index."""
        path = f"/api/v1/namespaces/{self.namespace.name}/pods"
        found = self.cluster.http.get(path, params={"labelSelector": f"rlhf-operator/job={job}"}).json()["items"]
        label = "batch.kubernetes.io/job-completion-index"
        return sorted(found, key=lambda pod: int(pod["metadata"]["labels"][label]))


@contextmanager
def running(
    folder: Path,
    cluster: Cluster,
    namespace: Namespace,
    databases: Callable[[], str],
    kubeconfig: Path,
    pod: dict[str, Any] | None = None,
    **settings: str,
) -> Iterator[Plane]:
    """A control plane that serves and acts, for the length of a `with`, in which no job ever has two live attempts."""
    plane = Plane(folder, cluster, namespace, databases, kubeconfig, pod, **settings)
    observer = Observer(namespace.store).start()
    try:
        yield plane.start()
    finally:
        observer.stop()
        plane.close()
    assert not observer.twice, observer.twice


def operator_kubeconfig(
    cluster: Cluster,
    namespace: Namespace,
    folder: Path,
    name: str = "rlhf-operator",
    without: tuple[str, str] | None = None,
) -> Path:
    """The configuration of an account that has the operator's role in the namespace, and nothing else.

    `without` a resource and a verb: the role lacks that.
    """
    role = yaml.safe_load(ROLE.read_text())
    role["metadata"] = {"name": name, "namespace": namespace.name}
    if without is not None:
        resource, verb = without
        role["rules"] = [
            {**rule, "resources": [each], "verbs": [v for v in rule["verbs"] if (each, v) != (resource, verb)]}
            for rule in role["rules"]
            for each in rule["resources"]
        ]
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace.name}}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": namespace.name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace.name}],
    }  # fmt: skip
    cluster.kubectl("apply", "-f", "-", input=yaml.safe_dump_all([role, account, binding]))
    token = cluster.kubectl("-n", namespace.name, "create", "token", name, "--duration", "4h").strip()
    given = yaml.safe_load(cluster.kubeconfig.read_text())
    given["users"] = [{"name": user["name"], "user": {"token": token}} for user in given["users"]]
    path = folder / "operator.conf"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(given))
    return path


def rehearsal(steps: int = 10, **fields: Any) -> dict[str, Any]:
    """A torch-free job of the real worker."""
    stage = {"type": "rehearse", "steps": steps, "seconds_per_step": 0.1, **fields.pop("stage", {})}
    resources = {"cpu": "100m", "memory": "128Mi", **fields.pop("resources", {})}
    return {"stage": stage, "resources": resources, "checkpoint": {"every_steps": 4}, **fields}
