"""What clusters say, in the words of Kubernetes 1.18 to 1.35, containerd and Kueue, and what that is about."""

from typing import Any

import pytest

from api.domain.cluster_words import hints
from tests.operator.builders import spec

pytestmark = pytest.mark.quick

GPUS = {"per_node": 8, "accelerator": "nvidia.com/gpu", "cpu": "32", "memory": "400Gi"}
SELECTED = {"pod": {"node_selector": {"disk": "ssd"}}}
CLAIMED = {"pod": {"volumes": [{"name": "data", "mount_path": "/mnt/data", "claim": "corpus"}]}}
POD = "job-abcdefghijkl-a1-0-x7k2p: "


def _found(words: str, resources: dict[str, Any] | None = None) -> tuple[str, list[str]]:
    """The sentences as one text, and the settings."""
    found = hints(words, spec(resources=resources or {}))
    return " ".join(hint.text for hint in found), [hint.setting for hint in found if hint.setting]


SCHEDULER = [
    (
        "0/2 nodes are available: 2 Insufficient cpu. no new claims to deallocate, preemption: 0/2 nodes are "
        "available: 2 No preemption victims found for incoming pod.",
        {},
        "fewer cores a node",
        ["resources.cpu=CORES"],
    ),
    (
        "0/3 nodes are available: 1 Insufficient memory, 2 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are "
        "available: 1 Preemption is not helpful for scheduling, 2 No preemption victims found for incoming pod..",
        GPUS,
        "fewer nvidia.com/gpu a node",
        ["resources.memory=SIZE", "resources.per_node=NUMBER"],
    ),
    ("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", {**GPUS, "per_node": 1}, "device plugin", []),
    ("0/1 nodes are available: 1 Too many pods.", {}, "as many pods as they may", []),
    (
        "0/1 nodes are available: 1 node(s) had untolerated taint {nvidia.com/gpu: present}. preemption: 0/1 nodes are "
        "available: 1 Preemption is not helpful for scheduling.",
        {},
        "the taint nvidia.com/gpu=present",
        ["'resources.pod.tolerations=[{key: nvidia.com/gpu, operator: Exists}]'"],
    ),
    (
        "0/3 nodes are available: 1 node(s) had taint {gpu: }, that the pod didn't tolerate, 2 Insufficient cpu.",
        {},
        "the taint gpu:",
        ["resources.cpu=CORES", "'resources.pod.tolerations=[{key: gpu, operator: Exists}]'"],
    ),
    # From 1.35 on without the taint itself.
    (
        "0/2 nodes are available: 2 node(s) had untolerated taint(s). no new claims to deallocate, preemption: 0/2 "
        "nodes are available: 2 Preemption is not helpful for scheduling.",
        {},
        "TAINTS:.spec.taints",
        ["'resources.pod.tolerations=[{key: KEY, operator: Exists}]'"],
    ),
    (
        "0/2 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }, 1 node(s) had "
        "untolerated taint {node-role.kubernetes.io/control-plane: }.",
        {},
        "in trouble (unreachable)",
        [],
    ),
    (
        "0/2 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unschedulable: }, 1 node(s) were "
        "unschedulable.",
        {},
        "kubectl uncordon NODE",
        [],
    ),
    (
        "0/10 nodes are available: 10 node(s) didn't match Pod's node affinity/selector. preemption: 0/10 nodes are "
        "available: 10 Preemption is not helpful for scheduling.",
        SELECTED,
        "resources.pod.node_selector",
        ["resources.pod.node_selector=null"],
    ),
    ("0/2 nodes are available: 2 node(s) didn't match node selector.", {}, "`nodeSelector` in the file of", []),
    (
        "0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules.",
        {},
        "an anti-affinity of their own",
        [],
    ),
    ("0/2 nodes are available: 2 node(s) didn't match pod topology spread constraints.", {}, "spreading pods", []),
    ("0/4 nodes are available: pod has unbound immediate PersistentVolumeClaims.", {}, "kubectl get pvc", []),
    (
        "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind.",
        CLAIMED,
        "of the spec's volumes: corpus",
        [],
    ),
    (
        '0/2 nodes are available: persistentvolumeclaim "corpus" not found.',
        CLAIMED,
        "The claim corpus does not exist",
        ["'resources.pod.volumes=[{name: NAME, mount_path: PATH, claim: CLAIM}]'"],
    ),
    ('0/2 nodes are available: persistentvolumeclaim "store" not found.', CLAIMED, "STORE_CLAIM", []),
    ("0/4 nodes are available: 4 node(s) had volume node affinity conflict.", {}, "from some nodes alone", []),
    ("0/4 nodes are available: 4 node(s) didn't match PersistentVolume's node affinity.", {}, "from some nodes", []),
]  # fmt: skip

KUBELET = [
    (
        'failed to pull and unpack image "localhost/no-such-image:1": failed to resolve reference "localhost/'
        'no-such-image:1": failed to do request: Head "https://localhost/v2/no-such-image/manifests/1": dial tcp '
        "[::1]:443: connect: connection refused",
        {},
        "do not reach the registry",
        [],
    ),
    (
        'Failed to pull image "example.org/w:2": rpc error: code = NotFound desc = failed to pull and unpack image '
        '"example.org/w:2": failed to resolve reference "example.org/w:2": example.org/w:2: not found',
        {},
        "has no image example.org/w:2",
        [],
    ),
    (
        'Failed to pull image "controller:latest": rpc error: code = Unknown desc = failed to pull and unpack image '
        '"docker.io/library/controller:latest": failed to resolve reference "docker.io/library/controller:latest": '
        "pull access denied, repository does not exist or may require authorization: server message: "
        "insufficient_scope: authorization failed",
        {},
        "`imagePullSecrets`",
        [],
    ),
    (
        'Failed to pull image "registry.example/w:1": failed to resolve reference "registry.example/w:1": unexpected '
        "status from HEAD request to https://registry.example/v2/w/manifests/1: 403 Forbidden",
        {},
        "`imagePullSecrets`",
        [],
    ),
    (
        'Failed to apply default image tag "Registry/W:::": couldn\'t parse image name "Registry/W:::": invalid '
        "reference format: repository name must be lowercase",
        {},
        "not well formed",
        [],
    ),
    ('Container image "w:1" is not present with pull policy of Never', {}, "`imagePullPolicy`", []),
    ('Back-off pulling image "w:1"', {}, "`image` and `imagePullSecrets`", []),
    ('CreateContainerConfigError: secret "hub-token" not found', {}, "no secret hub-token", []),
    (
        "CreateContainerConfigError: couldn't find key token in Secret training/hub-token",
        {},
        "training/hub-token has no key token",
        [],
    ),
    (
        'MountVolume.SetUp failed for volume "hub" : secret "hub-token" not found',
        {},
        "There is no secret hub-token in the job's namespace",
        [],
    ),
    (
        'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) other-0',
        {},
        "in use by another pod",
        [],
    ),
    (
        "could not start: failed to create containerd task: failed to create shim task: OCI runtime create failed: "
        'runc create failed: unable to start container process: error during container init: exec: "/no/such/program": '
        "stat /no/such/program: no such file or directory",
        {},
        "does not have the command",
        [],
    ),
    (
        "could not start: failed to create containerd task: failed to create shim task: OCI runtime create failed: "
        "runc create failed: unable to start container process: exec /app/run: exec format error",
        {},
        "another kind of processor",
        [],
    ),
    (
        "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox: plugin "
        'type="calico" failed (add): error getting ClusterInformation: connection is unauthorized',
        {},
        "its network",
        [],
    ),
]  # fmt: skip

REFUSALS = [
    (
        'Error creating: pods "job-abcdefghijkl-a1-0-q9x2c" is forbidden: exceeded quota: small, requested: pods=1, '
        "used: pods=0, limited: pods=0",
        {},
        "asks for pods=1 at once, and the quota small has 0 in all",
        [],
    ),
    (
        'pods "test-pod" is forbidden: exceeded quota: team, requested: requests.cpu=20,requests.memory=60Gi, used: '
        "requests.cpu=32575m,requests.memory=90368Mi, limited: requests.cpu=50,requests.memory=140Gi",
        {},
        "when others give back requests.cpu and requests.memory",
        ["resources.cpu=CORES", "resources.memory=SIZE"],
    ),
    (
        'pods "x" is forbidden: exceeded quota: team, requested: requests.nvidia.com/gpu=8, used: '
        "requests.nvidia.com/gpu=0, limited: requests.nvidia.com/gpu=4",
        GPUS,
        "the quota team has 4 in all",
        ["resources.per_node=NUMBER"],
    ),
    (
        'Error creating: pods "x-1-6nxxb" is forbidden: failed quota: ingress: must specify limits.cpu for: worker; '
        "limits.memory for: worker",
        {},
        "take limits.cpu out of it",
        ["resources.memory=SIZE"],
    ),
    (
        'Error creating: pods "x-0" is forbidden: violates PodSecurity "restricted:latest": restricted volume types '
        '(volume "scratch" uses restricted volume type "hostPath")',
        {},
        "Pod Security level",
        [],
    ),
    (
        'Error creating: pods "x-0" is forbidden: no PriorityClass with name urgent was found',
        {"pod": {"priority_class": "urgent"}},
        "no PriorityClass urgent",
        ["resources.pod.priority_class=NAME"],
    ),
    (
        'the API server refuses: jobs.batch is forbidden: User "system:serviceaccount:rlhf:operator" cannot create '
        'resource "jobs" in API group "batch" in the namespace "training"',
        {},
        "the operator's Role",
        [],
    ),
]  # fmt: skip

KUEUE = [
    (
        "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor a100, 2 more "
        "needed",
        GPUS,
        "when others give back their nvidia.com/gpu (2 more)",
        ["queue.kueue_priority_class=NAME"],
    ),
    (
        "couldn't assign flavors to pod set main: insufficient quota for cpu in flavor any, request > maximum capacity "
        "(8 > 2)",
        {"nodes": 2},
        "never has so much cpu in its flavor any",
        ["resources.cpu=CORES", "resources.nodes=NUMBER"],
    ),
    (
        "couldn't assign flavors to pod set main: insufficient quota for cpu in flavor default-flavor in ClusterQueue",
        {},
        "never has so much cpu in its flavor default-flavor",
        ["resources.cpu=CORES"],
    ),
    (
        "couldn't assign flavors to pod set main: insufficient quota for cpu in flavor any, previously considered "
        "podsets requests (0) + current podset request (8) > maximum capacity (2)",
        {},
        "never has so much cpu in its flavor any",
        ["resources.cpu=CORES"],
    ),
    (
        "couldn't assign flavors to pod set worker: borrowing limit for nvidia.com/gpu in flavor g5 exceeded",
        GPUS,
        "may not borrow more nvidia.com/gpu",
        [],
    ),
    (
        "couldn't assign flavors to pod set main: resource memory unavailable in ClusterQueue",
        {},
        "hands out no memory",
        ["queue.kueue=QUEUE"],
    ),
    (
        "couldn't assign flavors to pod set main: untolerated taint {gpu yes NoSchedule <nil>} in flavor a100",
        {},
        "flavor have a taint",
        ["'resources.pod.tolerations=[{key: KEY, operator: Exists}]'"],
    ),
    (
        "couldn't assign flavors to pod set main: flavor a100 doesn't match node affinity",
        SELECTED,
        "The queue's nodes are not those",
        ["resources.pod.node_selector=null"],
    ),
    ("LocalQueue team-b doesn't exist", {}, "no LocalQueue team-b", ["queue.kueue=QUEUE"]),
    ("ClusterQueue team-b doesn't exist", {}, "ClusterQueue team-b behind the queue", []),
    ("LocalQueue team-b is inactive", {}, "LocalQueue team-b is inactive", []),
    ("The ClusterQueue is stopped", {}, "The ClusterQueue is stopped", []),
    ("Workload namespace doesn't match ClusterQueue selector", {}, "takes nothing from the job's namespace", []),
    (
        "Kueue has not seen it yet: is it running, and is there a queue of this name in the namespace?",
        {},
        "kubectl get localqueue",
        [],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("words", "resources", "said", "settings"), [*SCHEDULER, *KUBELET, *REFUSALS, *KUEUE])
def test_words_lead_to_the_field_or_the_place_that_they_are_about(
    words: str, resources: dict[str, Any], said: str, settings: list[str]
) -> None:
    text, found = _found(POD + words, resources)
    assert said in text
    assert found == settings


def test_words_that_nobody_knows_give_no_hint() -> None:
    for words in ("", "it did not report within limits.start (12 s)", "0/2 nodes are available: 2 odd moon."):
        assert _found(words) == ("", [])


def test_a_taint_of_the_control_plane_is_nobodys_to_tolerate() -> None:
    words = "0/1 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }."
    assert _found(words) == ("", [])


def test_the_attempts_own_secret_comes_a_moment_after_its_job() -> None:
    words = 'MountVolume.SetUp failed for volume "rlhf-order" : secret "job-abcdefghijkl-a1" not found'
    assert _found(words) == ("", [])


def test_what_a_scheduler_repeats_of_pods_that_would_have_to_go_is_not_about_this_one() -> None:
    words = (
        "0/2 nodes are available: 2 node(s) didn't match node selector. preemption: 0/2 nodes are available: "
        "2 Insufficient cpu."
    )
    assert "cores" not in _found(words)[0]
