"""The administrator's part of worker pods, read from a file: what is wrong with it is said before anything starts."""

from pathlib import Path

import pytest

from api.operator.site import load_worker_pod
from api.settings import BadSettings, load

pytestmark = pytest.mark.quick


def written(folder: Path, text: str) -> Path:
    path = folder / "worker-pod.yaml"
    path.write_text(text)
    return path


def test_an_image_is_a_whole_file(tmp_path: Path) -> None:
    found = load_worker_pod(written(tmp_path, "image: registry.example/worker:1\n"))
    assert found.image == "registry.example/worker:1"
    assert (found.runAsUser, found.runAsGroup) == (10001, 10001)


def test_it_is_written_in_kubernetes_own_words(tmp_path: Path) -> None:
    text = """
image: worker
imagePullPolicy: Always
imagePullSecrets: [{name: registry}]
command: [python, -m, worker]
env:
- {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: hub, key: token}}}
volumes: [{name: hub, persistentVolumeClaim: {claimName: hub, readOnly: true}}]
volumeMounts: [{name: hub, mountPath: /hub, readOnly: true}]
nodeSelector: {pool: gpu}
tolerations: [{key: gpu, operator: Exists}]
runAsUser: 2000
egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]
"""
    found = load_worker_pod(written(tmp_path, text))
    assert found.env[0].valueFrom == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert found.egress == [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]


def test_all_that_is_wrong_is_said_at_once_with_its_place(tmp_path: Path) -> None:
    text = "imagePullPolicy: Sometimes\nrunAsUser: 0\nenv: [{name: A, value: 1}]\nhostNetwork: true\n"
    with pytest.raises(BadSettings) as refused:
        load_worker_pod(written(tmp_path, text))
    lines = str(refused.value).splitlines()
    assert len(lines) == 5
    assert all(line.startswith("WORKER_POD: ") and "worker-pod.yaml" in line for line in lines)
    said = "\n".join(lines)
    assert "image: is required" in said
    assert "imagePullPolicy: must be 'Always', 'IfNotPresent' or 'Never'" in said
    assert "runAsUser: must be greater than or equal to 1" in said
    assert "env.0.value: must be a valid string" in said
    assert "hostNetwork: unknown field; known: image, imagePullPolicy" in said


@pytest.mark.parametrize(
    ("text", "says"), [("", "must hold an object"), ("- a", "must hold an object"), ("image: [", "is no YAML")]
)
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadSettings, match=says):
        load_worker_pod(written(tmp_path, text))


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="cannot be read"):
        load_worker_pod(tmp_path / "none.yaml")


def test_attempts_run_in_no_namespace_that_is_the_control_planes_own(tmp_path: Path) -> None:
    kubernetes = {"worker_pod": tmp_path, "worker_url": "http://workers:8001", "store_claim": "store"}
    found = load(
        cluster="kubernetes", namespace="runs", namespaces="team-a runs team-b", pod_namespace="rlhf", **kubernetes
    )
    assert found.for_attempts == ("runs", "team-a", "team-b")
    for where in ({"namespace": "rlhf"}, {"namespaces": "team-a rlhf"}):
        with pytest.raises(BadSettings, match="rlhf is the control plane's own"):
            load(cluster="kubernetes", pod_namespace="rlhf", **{"namespace": "runs", **where}, **kubernetes)
    with pytest.raises(BadSettings, match=r"NAMESPACES\.1: String should match"):
        load(cluster="kubernetes", namespaces="team-a Team/B", **kubernetes)
    with pytest.raises(BadSettings, match="NAMESPACES: there are none without CLUSTER=kubernetes"):
        load(namespaces="team-a")
