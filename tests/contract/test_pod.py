"""What a spec may say of its pods: an allow-list, checked as Kubernetes would, so that no create fails of it later."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.test_spec import WHOLE, problems
from worker.contract.accelerators import deepspeed_accelerator
from worker.contract.check import parse_spec
from worker.contract.names import dns_label, label_key, label_value
from worker.contract.pod import Pod

pytestmark = pytest.mark.quick


def with_pod(**pod: Any) -> dict[str, Any]:
    return {**WHOLE, "resources": {"pod": pod}}


def volume(**fields: Any) -> dict[str, Any]:
    return {"name": "data", "mount_path": "/mnt/data", "claim": "corpora", **fields}


def pod_of(**pod: Any) -> Pod:
    found = parse_spec(with_pod(**pod)).resources.pod
    assert found is not None
    return found


def test_what_is_no_jobs_to_decide_is_refused_with_what_is() -> None:
    for field in ("labels", "host_network", "service_account", "security_context", "nodeSelector"):
        found = problems(with_pod(**{field: {}}))
        assert set(found) == {f"resources.pod.{field}"}
    assert found["resources.pod.nodeSelector"] == "unknown field; did you mean `node_selector`?"
    allowed = "affinity, annotations, env, node_selector, priority_class, secrets, tolerations, volumes"
    assert problems(with_pod(labels={}))["resources.pod.labels"] == f"unknown field; known: {allowed}"


def test_all_that_is_wrong_with_a_pod_is_said_at_once() -> None:
    found = problems(
        with_pod(
            env={"RANK": "1", "GREETING": 3},
            volumes=[volume(claim="A"), volume(name="other", mount_path="/tmp/x")],
            tolerations=[{"key": "a", "effect": "Sometimes"}],
            node_selector={"a b": "c"},
        )
    )
    assert set(found) == {
        "resources.pod.env.RANK",
        "resources.pod.env.GREETING",
        "resources.pod.volumes.0.claim",
        "resources.pod.volumes.1.mount_path",
        "resources.pod.tolerations.0.effect",
        "resources.pod.node_selector.a b",
    }


@pytest.mark.parametrize(
    "name",
    [
        "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "WORKER_RENDEZVOUS", "RLHF_SERVER",
        "KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX", "HOME", "TMPDIR", "DS_ACCELERATOR", "OMP_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "MALLOC_ARENA_MAX",
    ],
)  # fmt: skip
def test_a_variable_that_the_worker_or_the_cluster_sets_is_refused(name: str) -> None:
    assert "is set for each rank" in problems(with_pod(env={name: "1"}))[f"resources.pod.env.{name}"]


@pytest.mark.parametrize("name", ["PATH", "PYTHONPATH", "PYTHONSTARTUP", "LD_PRELOAD", "LD_LIBRARY_PATH", "CC"])
def test_a_variable_that_chooses_programs_is_refused(name: str) -> None:
    assert "which programs run" in problems(with_pod(env={name: "1"}))[f"resources.pod.env.{name}"]


def test_other_variables_are_taken_as_they_are() -> None:
    wanted = {"NCCL_DEBUG": "INFO", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "eth0", "greeting": "$(HOME) $$ é"}
    assert pod_of(env=wanted).env == wanted


def test_a_variables_name_is_one() -> None:
    for name in ("1ST", "A-B", "A.B", "", "A=B"):
        assert "letters, digits and underscores" in next(iter(problems(with_pod(env={name: "x"})).values()))


def test_the_variables_that_a_rank_is_started_with_are_all_refused() -> None:
    from worker.contract.order import Order
    from worker.ranks import environment

    spec = parse_spec({**WHOLE, "resources": {"accelerator": "none"}})
    order = Order(
        job="job-a", attempt=1, spec=spec, inputs={}, store="file:///s", control_url_file="/u", token_file="/t",
        termination_file="/e", log_folder="/l",
    )  # fmt: skip
    # On one node gloo is told the loopback interface; on several it is a spec's to say.
    names = set(environment(order, 0)) - {"GLOO_SOCKET_IFNAME"}
    refused = problems(with_pod(env=dict.fromkeys(names, "1")))
    assert {path.removeprefix("resources.pod.env.") for path in refused} == names


@pytest.mark.parametrize("path", ["/tmp", "/tmp/cache", "/etc/rlhf", "/dev/shm", "/dev", "/etc", "/"])
def test_a_volume_is_not_mounted_at_in_or_over_the_workers_own_paths(path: str) -> None:
    said = problems(with_pod(volumes=[volume(mount_path=path)]))["resources.pod.volumes.0.mount_path"]
    assert "is the worker's own; mount it elsewhere, such as at /mnt/data" in said


@pytest.mark.parametrize("path", ["/usr/lib/python3", "/opt", "/var/run/secrets/tokens", "/proc", "/root/.ssh"])
def test_a_volume_does_not_hide_the_images_programs(path: str) -> None:
    said = problems(with_pod(volumes=[volume(mount_path=path)]))["resources.pod.volumes.0.mount_path"]
    assert "the image's programs lie there" in said


@pytest.mark.parametrize(
    ("path", "right"),
    [("/mnt/data/", "/mnt/data"), ("//mnt", "/mnt"), ("/mnt//data", "/mnt/data"), ("/mnt/./data", "/mnt/data")],
)
def test_a_mount_path_is_written_in_one_way(path: str, right: str) -> None:
    said = problems(with_pod(volumes=[volume(mount_path=path)]))["resources.pod.volumes.0.mount_path"]
    assert said.startswith(f"write the path as {right};")


@pytest.mark.parametrize("path", ["mnt", "", "/mnt/../etc", "/mnt:ro", "/mnt/\x00"])
def test_a_mount_path_is_absolute_and_plain(path: str) -> None:
    said = problems(with_pod(volumes=[volume(mount_path=path)]))["resources.pod.volumes.0.mount_path"]
    assert "starts with `/`, without `:` and without `..`" in said


@pytest.mark.parametrize("other", ["/mnt/data", "/mnt/data/inner", "/mnt"])
def test_two_volumes_do_not_lie_in_one_another(other: str) -> None:
    found = problems(with_pod(volumes=[volume(), volume(name="other", mount_path=other)]))
    assert "mounted at or in one another" in found["resources.pod.volumes"]
    assert pod_of(volumes=[volume(), volume(name="other", mount_path="/mnt/data-2")])


def test_two_volumes_have_two_names_and_none_is_the_workers() -> None:
    found = problems(with_pod(volumes=[volume(), volume(mount_path="/mnt/other")]))
    assert "two volumes are called `data`" in found["resources.pod.volumes"]
    assert "the worker's own" in problems(with_pod(volumes=[volume(name="rlhf-store")]))["resources.pod.volumes.0"]


@pytest.mark.parametrize("kind", ["host_path", "hostPath", "secret", "config_map", "csi", "nfs", "emptyDir"])
def test_another_kind_of_volume_is_refused_with_the_two_that_there_are(kind: str) -> None:
    given = {"name": "data", "mount_path": "/mnt/data", kind: {"path": "/"}}
    said = problems(with_pod(volumes=[given]))["resources.pod.volumes.0"]
    assert f"`{kind}` is no kind of volume" in said
    assert "`claim`" in said
    assert "`empty_dir`" in said


def test_a_volume_is_a_claim_or_an_empty_folder() -> None:
    for wrong in (volume(empty_dir={}), {"name": "data", "mount_path": "/mnt/data"}):
        assert "one of `claim` and `empty_dir`" in problems(with_pod(volumes=[wrong]))["resources.pod.volumes.0"]
    scratch = {"name": "scratch", "mount_path": "/scratch", "empty_dir": {"medium": "Memory", "size_limit": "8Gi"}}
    assert len(pod_of(volumes=[volume(read_only=True), scratch]).volumes) == 2
    found = problems(with_pod(volumes=[{**scratch, "empty_dir": {"medium": "Disk", "size_limit": "8 GB"}}]))
    assert set(found) == {f"resources.pod.volumes.0.empty_dir.{field}" for field in ("medium", "size_limit")}
    assert "read-only" in problems(with_pod(volumes=[{**scratch, "read_only": True}]))["resources.pod.volumes.0"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"operator": "Exists", "value": "x"}, "looks at no value"),
        ({"value": "x"}, "give the taint's `key`"),
        ({"key": "a", "value": "x", "toleration_seconds": 3}, "needs effect: NoExecute"),
    ],
)
def test_a_toleration_that_kubernetes_would_refuse_is_refused(given: dict[str, Any], says: str) -> None:
    assert says in problems(with_pod(tolerations=[given]))["resources.pod.tolerations.0"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"key": "a", "operator": "In"}, "needs `values`"),
        ({"key": "a", "operator": "Exists", "values": ["x"]}, "looks at no value"),
        ({"key": "a", "operator": "Gt", "values": ["x"]}, "a whole number"),
        ({"key": "a", "operator": "Lt", "values": ["1", "2"]}, "one value"),
    ],
)
def test_an_affinity_that_kubernetes_would_refuse_is_refused(given: dict[str, Any], says: str) -> None:
    terms = {"node_selector_terms": [{"match_expressions": [given]}]}
    found = problems(
        with_pod(affinity={"node_affinity": {"required_during_scheduling_ignored_during_execution": terms}})
    )
    assert len(found) == 1
    path, said = next(iter(found.items()))
    assert path.endswith("node_selector_terms.0.match_expressions.0")
    assert says in said


def test_affinities_are_kubernetes_own_with_underscores() -> None:
    required = "required_during_scheduling_ignored_during_execution"
    term = {
        "label_selector": {"match_labels": {"app": "trainer"}},
        "topology_key": "kubernetes.io/hostname",
        "match_label_keys": ["batch.kubernetes.io/job-name"],
    }
    found = pod_of(
        affinity={
            "node_affinity": {
                required: {
                    "node_selector_terms": [
                        {"match_expressions": [{"key": "gpu", "operator": "In", "values": ["h100", "h200"]}]}
                    ]
                }
            },
            "pod_anti_affinity": {required: [term]},
        }
    )
    assert found.affinity is not None
    rendered = found.affinity.model_dump(by_alias=True, exclude_defaults=True)
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    assert rendered["nodeAffinity"][required]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"] == [
        "h100",
        "h200",
    ]
    assert rendered["podAntiAffinity"][required] == [
        {
            "labelSelector": {"matchLabels": {"app": "trainer"}},
            "topologyKey": "kubernetes.io/hostname",
            "matchLabelKeys": ["batch.kubernetes.io/job-name"],
        }
    ]
    kubernetes = {"nodeAffinity": {}}
    assert (
        "did you mean `node_affinity`" in problems(with_pod(affinity=kubernetes))["resources.pod.affinity.nodeAffinity"]
    )


@pytest.mark.parametrize(
    "key",
    [
        "rlhf-operator/spec-sha256", "batch.kubernetes.io/job-completion-index",
        "container.apparmor.security.beta.kubernetes.io/worker", "kubernetes.io/config.source",
    ],
)  # fmt: skip
def test_annotations_that_say_who_made_a_pod_or_how_it_is_confined_are_refused(key: str) -> None:
    assert "not a spec's to set" in problems(with_pod(annotations={key: "x"}))[f"resources.pod.annotations.{key}"]


def test_other_annotations_are_taken_up_to_a_size() -> None:
    wanted = {"sidecar.istio.io/inject": "false", "k8s.v1.cni.cncf.io/networks": "rdma", "Note": "any text: é"}
    assert pod_of(annotations=wanted).annotations == wanted
    assert "64 KiB" in problems(with_pod(annotations={"a": "x" * 70_000}))["resources.pod.annotations"]


def test_the_clusters_own_priority_classes_are_refused() -> None:
    assert pod_of(priority_class="training-high").priority_class == "training-high"
    said = problems(with_pod(priority_class="system-node-critical"))["resources.pod.priority_class"]
    assert "the cluster's own pods" in said


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("google.com/tpu", "does not run on TPUs"),
        ("aws.amazon.com/neuron", "does not run on Trainium"),
        ("habana.ai/gaudi", "do not compute on it yet, though DeepSpeed does (as `hpu`)"),
        ("gpu.intel.com/xe", "(as `xpu`)"),
        ("gpu.intel.com/i915", "(as `xpu`)"),
        ("huawei.com/Ascend910", "(as `npu`)"),
        ("nvidia.com/mig-1g.5gb", "is a slice of a GPU"),
        ("nvidia.com/gpus", "must be 'none', 'nvidia.com/gpu' or 'amd.com/gpu'"),
    ],
)
def test_an_accelerator_that_ranks_cannot_compute_on_is_refused_with_why(name: str, says: str) -> None:
    said = problems({**WHOLE, "resources": {"accelerator": name}})["resources.accelerator"]
    assert says in said
    assert "nvidia.com/gpu" in said
    assert f"got {name!r}" in said


def test_accelerators_have_the_names_that_deepspeed_gives_them() -> None:
    for name in ("nvidia.com/gpu", "amd.com/gpu"):
        assert parse_spec({**WHOLE, "resources": {"accelerator": name}}).resources.accelerator == name
        assert deepspeed_accelerator(name) == "cuda"
    assert deepspeed_accelerator("none") is None


def test_a_queue_is_named_as_kubernetes_names_objects() -> None:
    queue = parse_spec({**WHOLE, "queue": {"kueue": "team-a", "kueue_priority_class": "high"}}).queue
    assert (queue.kueue, queue.kueue_priority_class) == ("team-a", "high")
    assert "lower-case" in problems({**WHOLE, "queue": {"kueue": "Team A"}})["queue.kueue"]
    assert "63" in problems({**WHOLE, "queue": {"kueue": "a" * 64}})["queue.kueue"]


def test_a_priority_class_of_kueue_needs_its_queue() -> None:
    said = problems({**WHOLE, "queue": {"kueue_priority_class": "high"}})["queue.kueue_priority_class"]
    assert "queue.kueue" in said


# https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/ in a regular expression each.
@given(st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True))
def test_every_dns_label_is_a_name(name: str) -> None:
    assert dns_label(name) == name
    assert label_value(name) == name
    assert label_key(f"example.com/{name}") == f"example.com/{name}"


@given(
    st.from_regex(r"[-._a-z]?[a-z0-9]{1,5}[-._]", fullmatch=True)
    | st.text(alphabet="a \n/:é", min_size=2).map("é{}".format)
)
def test_a_name_with_a_mark_at_its_end_is_none(name: str) -> None:
    for check in (dns_label, label_value, label_key):
        with pytest.raises(ValueError, match=r"write|name|key"):
            check(name)


def test_a_name_has_its_length() -> None:
    for check in (dns_label, label_value, label_key):
        assert check("a" * 63)
        with pytest.raises(ValueError, match="63"):
            check("a" * 64)
    assert label_value("") == ""
    for wrong in ("a/b/c", "/a", "a/", "A.com/x", f"{'a' * 254}/x"):
        with pytest.raises(ValueError, match="key"):
            label_key(wrong)


def test_a_secret_is_named_with_its_key() -> None:
    assert pod_of(secrets={"HF_TOKEN": "hub/token"}).secrets == {"HF_TOKEN": "hub/token"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"secrets": {"HF_TOKEN": "hub"}}, "write SECRET/KEY, such as hub/token"),
        ({"secrets": {"HF_TOKEN": "hub/token/x"}}, "write SECRET/KEY"),
        ({"secrets": {"HF_TOKEN": "Hub/token"}}, "lower-case letters"),
        ({"secrets": {"RANK": "hub/token"}}, "is set for each rank"),
        ({"secrets": {"LD_PRELOAD": "hub/token"}}, "decides which programs run"),
        ({"secrets": {"X": "hub/token"}, "env": {"X": "1"}}, "`X` is in `env` and in `secrets`"),
    ],
)
def test_a_secret_that_cannot_be_is_refused(given: dict[str, Any], says: str) -> None:
    assert says in " ".join(problems(with_pod(**given)).values())
