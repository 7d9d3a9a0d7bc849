"""The objects of attempts, as a real API server takes them, and as a real pod finds them."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api.operator.manifest import Objects, objects, owned_by, preview
from api.operator.site import Site, WorkerPod
from client.commands.manifest import as_yaml
from tests.kubernetes.fixtures import AnyCluster
from tests.kubernetes.namespace import Namespace
from tests.operator.rendered import order_of, spec_of
from worker.contract.spec import JobSpec

REQUIRED = "required_during_scheduling_ignored_during_execution"
PREFERRED = "preferred_during_scheduling_ignored_during_execution"
NEAR = {
    "label_selector": {"match_expressions": [{"key": "app", "operator": "Exists"}]},
    "topology_key": "kubernetes.io/hostname",
    "namespaces": ["default"],
    "match_label_keys": ["batch.kubernetes.io/job-name"],
}
EVERYTHING: dict[str, Any] = {
    "node_selector": {"example.com/pool": "training", "zone": ""},
    "tolerations": [
        {"operator": "Exists"},
        {"key": "gpu", "value": "yes", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Exists", "effect": "NoExecute", "toleration_seconds": 30},
    ],
    "affinity": {
        "node_affinity": {
            REQUIRED: {
                "node_selector_terms": [
                    {"match_expressions": [{"key": "gpus", "operator": "Gt", "values": ["4"]}]},
                    {"match_expressions": [{"key": "gpu", "operator": "In", "values": ["h100"]}]},
                ]
            },
            PREFERRED: [
                {"weight": 7, "preference": {"match_expressions": [{"key": "rack", "operator": "DoesNotExist"}]}}
            ],
        },
        "pod_affinity": {REQUIRED: [NEAR], PREFERRED: [{"weight": 100, "pod_affinity_term": NEAR}]},
        "pod_anti_affinity": {REQUIRED: [{"label_selector": {}, "topology_key": "example.com/rack"}]},
    },
    "annotations": {"Example.com/Note": "any text: é", "short": ""},
    "volumes": [
        {"name": "corpora", "mount_path": "/mnt/corpora", "claim": "corpora.v1", "read_only": True},
        {"name": "scratch", "mount_path": "/scratch", "empty_dir": {"medium": "Memory", "size_limit": "8Gi"}},
        {"name": "disk", "mount_path": "/home/worker", "empty_dir": {}},
    ],
    "env": {"NCCL_DEBUG": "INFO", "FACTOR": "1e3", "ANSWER": "y", "_Odd": "$(HOME)\n é", "EMPTY": ""},
}
QUANTITIES = {"cpu": "1500m", "memory": "1.5Gi"}
SPECS: dict[str, dict[str, Any]] = {
    "the least": {},
    "several nodes": {"resources": {"nodes": 1024, "per_node": 64}},
    "nvidia": {"resources": {"nodes": 2, "per_node": 8, "accelerator": "nvidia.com/gpu", **QUANTITIES}},
    "amd": {"resources": {"accelerator": "amd.com/gpu", "cpu": "0.5", "memory": "500M"}},
    "a pod with everything": {"resources": {"pod": EVERYTHING}},
    "a queue": {"queue": {"kueue": "team-a", "kueue_priority_class": "high"}},
    "a short grace": {"checkpoint": {"grace": "1ms"}},
    "a long grace": {"checkpoint": {"grace": "300d"}},
}
ADMIN = WorkerPod(
    image="registry.example/worker:1",
    imagePullPolicy="IfNotPresent",
    imagePullSecrets=[{"name": "registry"}],
    command=["python", "-m", "worker"],
    env=[{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
    volumes=[{"name": "hub", "persistentVolumeClaim": {"claimName": "hub", "readOnly": True}}],
    volumeMounts=[{"name": "hub", "mountPath": "/hub", "readOnly": True, "subPath": "models"}],
    tolerations=[{"key": "training", "operator": "Exists"}],
    egress=[{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"protocol": "TCP", "port": 443}]}],
)


def site_of(namespace: Namespace, **parts: Any) -> Site:
    return Site(
        namespace=namespace.name,
        installation="blue",
        worker_url="http://10.88.1.1:8001",
        store_url=namespace.store.as_uri(),
        store_claim=namespace.store_claim,
        store_path=str(namespace.store),
        pod=WorkerPod.model_validate({**namespace.pod_additions, **parts}),
    )


PATHS = {
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "Service": "/api/v1/namespaces/{}/services",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "Secret": "/api/v1/namespaces/{}/secrets",
    "Pod": "/api/v1/namespaces/{}/pods",
}


def would_create(cluster: AnyCluster, made: dict[str, Any]) -> str:
    """What a strict API server has against an object, such as an unknown field; "": nothing."""
    path = PATHS[made["kind"]].format(made["metadata"]["namespace"])
    answer = cluster.http.post(path, params={"dryRun": "All", "fieldValidation": "Strict"}, json=made)
    return "" if answer.status_code == 201 and "Warning" not in answer.headers else answer.text + str(answer.headers)


def pod_of(made: Objects) -> dict[str, Any]:
    """A pod as the Job controller would make it."""
    template = made.job["spec"]["template"]
    meta = {**template["metadata"], "name": "a-pod", "namespace": made.job["metadata"]["namespace"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}


def admins_of(namespace: Namespace) -> list[Site]:
    """Two installations: one whose administrator says little, and one who says everything."""
    site = site_of(namespace)
    return [site, replace(site, pod=ADMIN, worker_url="https://workers.rlhf.svc", store_claim=None)]


@pytest.mark.parametrize("title", SPECS)
def test_a_strict_api_server_takes_the_objects_of_every_spec_and_the_restricted_level_its_pods(
    cluster: AnyCluster, module_namespace: Namespace, title: str
) -> None:
    spec = spec_of(**SPECS[title])
    for site in admins_of(module_namespace):
        made = owned_by(objects("job-abcdefghijkl-a2", order_of(spec), "token", site), "uid-1")
        for each in [*made.all(), pod_of(made)]:
            assert would_create(cluster, each) == ""


def test_kubectl_takes_what_rlhf_manifest_prints(cluster: AnyCluster, module_namespace: Namespace) -> None:
    printed = "".join(
        as_yaml(preview(spec_of(**fields), {}, site).all())
        for fields in SPECS.values()
        for site in admins_of(module_namespace)
    )
    said = cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=printed).splitlines()
    assert len(said) == 4 * 2 * len(SPECS)
    assert all(line.endswith("created (server dry run)") for line in said)


def test_the_restricted_level_is_looked_at(cluster: AnyCluster, module_namespace: Namespace) -> None:
    site = site_of(module_namespace, volumes=[{"name": "node", "hostPath": {"path": "/"}}], volumeMounts=[])
    made = objects("job-abcdefghijkl-a2", order_of(spec_of()), "token", site)
    assert "restricted volume types" in would_create(cluster, pod_of(made))


def run(cluster: AnyCluster, made: Objects) -> dict[str, Any]:
    """Makes the objects as the operator does, and gives the Job once it is over."""

    def create(each: dict[str, Any]) -> dict[str, Any]:
        path = PATHS[each["kind"]].format(each["metadata"]["namespace"])
        found: dict[str, Any] = cluster.http.post(path, json=each).raise_for_status().json()
        return found

    job = create(made.job)
    for each in owned_by(made, job["metadata"]["uid"]).dependents:
        create(each)
    path = f"{PATHS['Job'].format(job['metadata']['namespace'])}/{made.name}"
    deadline = time.monotonic() + 120
    while not any(c["type"] in ("Complete", "Failed") for c in job["status"].get("conditions", ())):
        assert time.monotonic() < deadline, job["status"]
        time.sleep(0.2)
        job = cluster.http.get(path).raise_for_status().json()
    return job


def attempt(namespace: Namespace, script: str, number: int, **fields: Any) -> Objects:
    """An attempt whose worker is a shell."""
    spec: JobSpec = spec_of(**fields)
    site = site_of(namespace, command=["sh", "-c", script])
    order = order_of(spec, number)
    return objects(f"{order.job}-a{number}", order, "the-token", site)


def test_a_worker_reads_its_order_and_writes_where_it_must_and_nowhere_else(
    cluster: AnyCluster, module_namespace: Namespace
) -> None:
    namespace = module_namespace
    greeting = "$(HOME) $$ ${HOME} é"
    mark: Path = namespace.store / "from-the-pod"
    script = f"""
set -e
test "$(cat /etc/rlhf/token)" = the-token
test "$(cat /etc/rlhf/control-url)" = http://10.88.1.1:8001
grep -q '"attempt":1' "$1"
for place in /tmp /dev/shm /mnt/scratch {namespace.store}; do touch $place/written; done
if touch /etc/rlhf/written 2>/dev/null || touch /written 2>/dev/null; then exit 9; fi
printf %s "$GREETING" > {mark}
printf said > /dev/termination-log
"""
    volume = {"name": "scratch", "mount_path": "/mnt/scratch", "empty_dir": {}}
    pod = {"env": {"GREETING": greeting}, "volumes": [volume]}
    made = attempt(namespace, script, 1, resources={"memory": "64Mi", "cpu": "10m", "pod": pod})
    job = run(cluster, made)
    assert job["status"].get("succeeded") == 1, cluster.kubectl("logs", "-n", namespace.name, f"job/{made.name}")
    assert mark.read_text() == greeting
    path = f"/api/v1/namespaces/{namespace.name}/pods?labelSelector=rlhf-operator/attempt=1"
    (found,) = cluster.http.get(path).json()["items"]
    assert found["status"]["containerStatuses"][0]["state"]["terminated"]["message"] == "said"
    assert found["spec"]["hostname"] == f"{made.name}-0"


@pytest.mark.parametrize(("code", "rule"), [(5, 3), (143, 5), (1, 7), (77, 8)])
def test_the_jobs_condition_names_the_code_that_a_worker_ended_with(
    cluster: AnyCluster, module_namespace: Namespace, code: int, rule: int
) -> None:
    made = attempt(module_namespace, f"exit {code}", 1000 + code, resources={"memory": "64Mi", "cpu": "10m"})
    job = run(cluster, made)
    said = next(c for c in job["status"]["conditions"] if c["type"] == "Failed")
    assert said["reason"] == "PodFailurePolicy"
    assert f"failed with exit code {code} matching FailJob rule at index {rule}" in said["message"]
    assert job["status"]["failed"] == 1


def test_the_others_go_when_the_job_goes(cluster: AnyCluster, module_namespace: Namespace) -> None:
    namespace = module_namespace
    made = attempt(namespace, "true", 2, resources={"memory": "64Mi", "cpu": "10m"})
    run(cluster, made)
    kinds = "job,pod,service,networkpolicy,secret"
    selected = "rlhf-operator/installation=blue,rlhf-operator/attempt=2"
    listed = ("get", kinds, "-n", namespace.name, "-l", selected, "-o", "name")
    assert len(cluster.kubectl(*listed).split()) == 5
    cluster.kubectl("delete", "job", made.name, "-n", namespace.name, "--cascade=foreground")
    deadline = time.monotonic() + 60
    while left := cluster.kubectl(*listed).split():
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
