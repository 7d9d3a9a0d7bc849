"""The test cluster does what the other tests here take for granted."""

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.cluster.machine import ClusterError
from tests.kubernetes.fixtures import AnyCluster
from tests.kubernetes.namespace import REPOSITORY, Namespace

PYTHON = str(REPOSITORY / ".venv/bin/python")


def pod(namespace: Namespace, name: str, spec: dict[str, Any]) -> str:
    metadata = {"name": name, "namespace": namespace.name}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def phase(cluster: AnyCluster, namespace: Namespace, name: str) -> str:
    answer = cluster.http.get(f"/api/v1/namespaces/{namespace.name}/pods/{name}").raise_for_status()
    return str(answer.json()["status"]["phase"])


def until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def runs_to_its_end(cluster: AnyCluster, namespace: Namespace, name: str) -> str:
    until(lambda: phase(cluster, namespace, name) in {"Succeeded", "Failed"}, f"the end of pod {name}")
    log = cluster.kubectl("logs", "-n", namespace.name, name)
    assert phase(cluster, namespace, name) == "Succeeded", log
    return log


def test_every_node_is_ready(cluster: AnyCluster) -> None:
    ready = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}"
    assert cluster.kubectl("get", "nodes", "-o", ready).split() == ["True"] * cluster.nodes


def test_a_pod_under_the_restricted_level_imports_the_worker_and_torch_on_every_node(
    cluster: AnyCluster, module_namespace: Namespace
) -> None:
    nodes = [item["metadata"]["name"] for item in cluster.http.get("/api/v1/nodes").json()["items"]]
    program = "import os, worker.contract.spec, torch; print(os.getuid(), torch.ones(2).sum().item())"
    for node in nodes:
        spec = module_namespace.pod_spec(PYTHON, "-c", program, memory="1Gi", nodeName=node)
        cluster.kubectl("create", "-f", "-", input=pod(module_namespace, f"imports-{node}", spec))
    for node in nodes:
        assert runs_to_its_end(cluster, module_namespace, f"imports-{node}").split() == ["10001", "2.0"]


def test_a_pod_with_a_host_path_of_its_own_is_refused(cluster: AnyCluster, module_namespace: Namespace) -> None:
    spec = module_namespace.pod_spec("true")
    spec["volumes"].append({"name": "host", "hostPath": {"path": "/etc"}})
    with pytest.raises(ClusterError, match="restricted volume types"):
        cluster.kubectl("create", "-f", "-", input=pod(module_namespace, "host-path", spec))


def test_a_pod_and_this_machine_write_into_the_same_store(cluster: AnyCluster, module_namespace: Namespace) -> None:
    folder = module_namespace.store / "made-here"
    folder.mkdir()
    (folder / "file").write_text("from here")
    script = f"set -e; cat {folder}/file; echo ' and from there' >>{folder}/file; mkdir {folder}/made-there"
    spec = module_namespace.pod_spec("sh", "-c", script)
    cluster.kubectl("create", "-f", "-", input=pod(module_namespace, "writes", spec))
    assert runs_to_its_end(cluster, module_namespace, "writes") == "from here"
    assert (folder / "file").read_text() == "from here and from there\n"
    assert (folder / "made-there").is_dir()


def test_a_pod_cannot_write_into_what_it_has_of_this_machine(cluster: AnyCluster, module_namespace: Namespace) -> None:
    script = f"for d in / /usr {REPOSITORY}; do touch $d/written 2>&1; done; true"
    spec = module_namespace.pod_spec("sh", "-c", script)
    cluster.kubectl("create", "-f", "-", input=pod(module_namespace, "reads", spec))
    assert runs_to_its_end(cluster, module_namespace, "reads").count("Read-only file system") == 3


def test_the_pods_of_an_indexed_job_find_each_other_by_name(cluster: AnyCluster, namespace: Namespace) -> None:
    # Each waits for the other's name, which the Service tells before either is ready.
    script = (
        "until nslookup -type=a pair-$((1 - JOB_COMPLETION_INDEX)).pair.$SPACE.svc.cluster.local; do sleep 0.2; done"
    )
    spec = namespace.pod_spec("sh", "-c", script, subdomain="pair")
    spec["containers"][0]["env"] = [*spec["containers"][0]["env"], {"name": "SPACE", "value": namespace.name}]
    spec["affinity"] = {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"pair": "yes"}}}
            ]
        }
    }
    metadata = {"name": "pair", "namespace": namespace.name}
    template = {"metadata": {"labels": {"pair": "yes"}}, "spec": spec}
    objects = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"pair": "yes"}},
        },
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata,
            "spec": {
                "completionMode": "Indexed",
                "completions": 2,
                "parallelism": 2,
                "backoffLimit": 0,
                "template": template,
            },
        },
    ]
    cluster.kubectl("create", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    cluster.kubectl("wait", "-n", namespace.name, "--for=condition=Complete", "job/pair", "--timeout=120s")


@contextmanager
def served(body: bytes) -> Iterator[int]:
    """A server of this machine on all its addresses: its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_pods_on_every_node_reach_a_server_of_this_machine(cluster: AnyCluster, module_namespace: Namespace) -> None:
    nodes = [item["metadata"]["name"] for item in cluster.http.get("/api/v1/nodes").json()["items"]]
    with served(b"hello, pod") as port:
        for node in nodes:
            spec = module_namespace.pod_spec(
                "wget", "-qO-", f"http://{cluster.host_address}:{port}/", nodeName=node, dnsPolicy="Default"
            )
            cluster.kubectl("create", "-f", "-", input=pod(module_namespace, f"asks-{node}", spec))
        for node in nodes:
            assert runs_to_its_end(cluster, module_namespace, f"asks-{node}") == "hello, pod"


def test_the_api_server_comes_back_with_what_it_knew(cluster: AnyCluster, namespace: Namespace) -> None:
    cluster.kubectl("create", "configmap", "kept", "-n", namespace.name, "--from-literal=a=b")
    cluster.stop_api_server()
    with pytest.raises(ClusterError, match="refused"):
        cluster.kubectl("get", "configmap", "kept", "-n", namespace.name)
    cluster.start_api_server()
    assert cluster.kubectl("get", "configmap", "kept", "-n", namespace.name, "-o", "jsonpath={.data.a}") == "b"


def test_a_frozen_node_is_not_ready_and_a_thawed_one_is(cluster: AnyCluster, namespace: Namespace) -> None:
    def ready() -> str:
        path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        return cluster.kubectl("get", "node", "node2", "-o", path)

    cluster.freeze(2)
    until(lambda: ready() == "Unknown", "the frozen node is found out")
    cluster.thaw(2)
    until(lambda: ready() == "True", "the thawed node is Ready")


def test_kueue_admits_what_fits_into_its_queue(cluster: AnyCluster, namespace: Namespace) -> None:
    cluster.start_kueue()
    queue = cluster.local_queue(namespace.name)
    jobs = []
    for index in range(3):
        spec = namespace.pod_spec("sleep", "600")
        spec["containers"][0]["resources"] = {"requests": {"cpu": "1", "memory": "64Mi"}}
        jobs.append(
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {
                    "name": f"waits-{index}",
                    "namespace": namespace.name,
                    "labels": {"kueue.x-k8s.io/queue-name": queue},
                },
                "spec": {"suspend": True, "backoffLimit": 0, "template": {"spec": spec}},
            }
        )
    cluster.kubectl("create", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": jobs}))

    def suspended() -> list[str]:
        listed = cluster.http.get(f"/apis/batch/v1/namespaces/{namespace.name}/jobs").json()["items"]
        return [job["metadata"]["name"] for job in listed if job["spec"]["suspend"]]

    until(lambda: len(suspended()) == 1, "two of three 1-CPU Jobs are let into a queue of 2 CPUs")
    first = next(f"waits-{index}" for index in range(3) if f"waits-{index}" not in suspended())
    cluster.kubectl("delete", "job", first, "-n", namespace.name)
    until(lambda: not suspended(), "the third is let in when one is gone")
