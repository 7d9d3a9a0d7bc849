"""The pods of an attempt, as a function of its spec and of the administrator's part."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.operator.manifest import CannotRender, objects
from api.operator.podspec import collisions
from api.operator.site import Bucket
from tests.operator.rendered import NAME, SITE, TOKEN, container, made, order_of, pod, spec_of, variables, with_pod

pytestmark = pytest.mark.quick


def test_pods_are_restricted() -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and the root folder besides."""
    spec, inner = pod(), container()
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    context = spec["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == 10001
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert inner["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not any(key.startswith("host") for key in spec)
    for volume in spec["volumes"]:
        assert set(volume) - {"name"} <= {"secret", "emptyDir", "persistentVolumeClaim"}


def test_what_is_written_to_has_a_volume() -> None:
    places = {mount["mountPath"]: mount["name"] for mount in container()["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    assert volumes[places["/tmp"]]["emptyDir"] == {}
    assert volumes[places["/dev/shm"]]["emptyDir"] == {"medium": "Memory"}
    assert volumes[places["/store"]]["persistentVolumeClaim"] == {"claimName": "store"}
    assert container()["terminationMessagePath"] == "/dev/termination-log"
    assert container()["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_of_a_bucket_a_pod_has_what_leads_to_it_and_a_folder_of_its_node() -> None:
    bucket = Bucket.of(
        {"AWS_ENDPOINT_URL": "http://s3.storage.svc:9000", "AWS_REGION": "x", "AWS_SECRET_ACCESS_KEY": "canary"},
        secret="rlhf-s3",
        scratch="200Gi",
    )
    site = replace(SITE, store_url="s3://bucket/store", store_claim=None, store_path="/scratch", bucket=bucket)
    places = {mount["mountPath"]: mount["name"] for mount in container(site)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod(site)["volumes"]}
    assert volumes[places["/scratch"]]["emptyDir"] == {"sizeLimit": "200Gi"}
    found = {entry["name"]: entry for entry in container(site)["env"]}
    assert found["AWS_ENDPOINT_URL"]["value"] == "http://s3.storage.svc:9000"
    assert found["AWS_REGION"]["value"] == "x"
    secret = {"name": "rlhf-s3", "key": "AWS_SECRET_ACCESS_KEY"}
    assert found["AWS_SECRET_ACCESS_KEY"]["valueFrom"] == {"secretKeyRef": secret}
    assert found["AWS_SESSION_TOKEN"]["valueFrom"]["secretKeyRef"]["optional"]
    assert "canary" not in str(made(site).all())
    (rule,) = [rule for rule in made(site).network_policy["spec"]["egress"] if "9000" in str(rule)]
    assert rule["to"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "storage"}
    # Without a Secret they have an identity of their own.
    assert "AWS_ACCESS_KEY_ID" not in str(pod(replace(site, bucket=Bucket())))


def test_no_spec_leads_a_pod_to_another_bucket() -> None:
    site = replace(SITE, store_url="s3://bucket/store", store_claim=None, store_path="/scratch", bucket=Bucket())
    wanted = {
        "env": {"AWS_ENDPOINT_URL": "http://elsewhere"},
        "secrets": {"AWS_ACCESS_KEY_ID": "mine/key"},
        "volumes": [{"name": "mine", "mount_path": "/scratch/x", "empty_dir": {}}],
    }
    assert {problem.path for problem in collisions(spec_of(resources={"pod": wanted}), site)} == {
        "resources.pod.volumes.0.mount_path",
        "resources.pod.secrets.AWS_ACCESS_KEY_ID",
        "resources.pod.env.AWS_ENDPOINT_URL",
    }


@pytest.mark.parametrize(("grace", "seconds"), [("600s", 600), ("1500ms", 2), ("200ms", 1), ("2h", 7200)])
def test_pods_have_the_jobs_grace_in_whole_seconds(grace: str, seconds: int) -> None:
    assert pod(checkpoint={"grace": grace})["terminationGracePeriodSeconds"] == seconds


def test_memory_and_accelerators_are_promised_and_cores_are_asked_for() -> None:
    wanted = {"per_node": 8, "accelerator": "nvidia.com/gpu", "cpu": "32", "memory": "400Gi"}
    found = container(resources=wanted)["resources"]
    assert found["requests"] == {"cpu": "32", "memory": "400Gi", "nvidia.com/gpu": "8"}
    assert found["limits"] == {"memory": "400Gi", "nvidia.com/gpu": "8"}


def test_a_spec_that_asks_for_nothing_asks_for_enough_to_begin_and_has_no_limit() -> None:
    found = container(resources={"per_node": 3})["resources"]
    assert found == {"requests": {"cpu": "1500m", "memory": "3072Mi"}}


@pytest.mark.parametrize(("accelerator", "name"), [("none", None), ("nvidia.com/gpu", "cuda"), ("amd.com/gpu", "cuda")])
def test_deepspeed_is_told_what_it_computes_on(accelerator: str, name: str | None) -> None:
    assert variables(resources={"accelerator": accelerator}).get("DS_ACCELERATOR") == name
    assert (accelerator in container(resources={"accelerator": accelerator})["resources"]["requests"]) == bool(name)


def test_the_specs_variables_are_over_the_administrators_and_ours_over_both() -> None:
    site = with_pod(
        env=[
            {"name": "HF_ENDPOINT", "value": "http://hub.example"},
            {"name": "NCCL_DEBUG", "value": "WARN"},
            {"name": "DS_ACCELERATOR", "value": "cpu"},
            {"name": "HOME", "value": "/home/worker"},
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
        ]
    )
    resources = {"accelerator": "nvidia.com/gpu", "pod": {"env": {"NCCL_DEBUG": "INFO"}}}
    found = variables(site, resources=resources)
    assert found["HF_ENDPOINT"] == "http://hub.example"
    assert found["NCCL_DEBUG"] == "INFO"
    assert found["DS_ACCELERATOR"] == "cuda"
    assert found["HOME"] == "/home/worker"
    assert found["TMPDIR"] == "/tmp"
    token = next(entry for entry in container(site)["env"] if entry["name"] == "HF_TOKEN")
    assert token["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert variables()["HOME"] == variables()["TMPDIR"] == "/tmp"


def expanded(text: str) -> str:
    """What a container is given for a variable's text, where no other variable has a name in it: `$$` is `$`."""
    return re.sub(r"\$(\$|\([^)]*\))", lambda found: "$" if found[1] == "$" else "EXPANDED", text)


@given(st.text(alphabet="$(HOME) é", max_size=12))
def test_a_specs_variable_reaches_the_worker_as_it_was_written(text: str) -> None:
    assert expanded(variables(resources={"pod": {"env": {"GREETING": text}}})["GREETING"]) == text


def test_the_administrators_part_is_in_every_pod() -> None:
    site = with_pod(
        imagePullPolicy="Always",
        imagePullSecrets=[{"name": "registry"}],
        command=["python", "-m", "worker"],
        volumes=[{"name": "hub", "persistentVolumeClaim": {"claimName": "hub"}}],
        volumeMounts=[{"name": "hub", "mountPath": "/hub", "readOnly": True}],
        nodeSelector={"pool": "gpu"},
        tolerations=[{"key": "gpu", "operator": "Exists"}],
        runAsUser=2000,
        runAsGroup=3000,
    )
    wanted = {"node_selector": {"zone": "a"}, "tolerations": [{"key": "spot", "value": "yes"}]}
    spec, inner = pod(site, resources={"pod": wanted}), container(site)
    assert (inner["image"], inner["imagePullPolicy"]) == ("w", "Always")
    assert inner["command"] == ["python", "-m", "worker"]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert {"name": "hub", "persistentVolumeClaim": {"claimName": "hub"}} in spec["volumes"]
    assert {"name": "hub", "mountPath": "/hub", "readOnly": True} in inner["volumeMounts"]
    assert spec["nodeSelector"] == {"pool": "gpu", "zone": "a"}
    spot = {"key": "spot", "operator": "Equal", "value": "yes"}
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}, spot]
    context = spec["securityContext"]
    assert [context[key] for key in ("runAsUser", "runAsGroup", "fsGroup")] == [2000, 3000, 3000]
    bare = container()
    assert not {"imagePullPolicy", "command"} & set(bare)
    assert not {"imagePullSecrets", "nodeSelector", "tolerations", "affinity", "priorityClassName"} & set(pod())


def test_the_specs_part_is_in_its_pods_in_kubernetes_words() -> None:
    wanted = {
        "priority_class": "training-high",
        "annotations": {"sidecar.istio.io/inject": "false"},
        "volumes": [
            {"name": "corpora", "mount_path": "/mnt/corpora", "claim": "corpora", "read_only": True},
            {"name": "scratch", "mount_path": "/scratch", "empty_dir": {"medium": "Memory", "size_limit": "8Gi"}},
        ],
    }
    found = made(resources={"pod": wanted}).job["spec"]["template"]
    assert found["metadata"]["annotations"] == {"sidecar.istio.io/inject": "false"}
    assert found["spec"]["priorityClassName"] == "training-high"
    assert found["spec"]["volumes"][-2:] == [
        {"name": "corpora", "persistentVolumeClaim": {"claimName": "corpora", "readOnly": True}},
        {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}},
    ]
    assert found["spec"]["containers"][0]["volumeMounts"][-2:] == [
        {"name": "corpora", "mountPath": "/mnt/corpora", "readOnly": True},
        {"name": "scratch", "mountPath": "/scratch"},
    ]


def test_a_job_keeps_the_image_that_it_is_given() -> None:
    found = objects(NAME, order_of(spec_of()), TOKEN, SITE, image="registry.example/worker@sha256:1")
    assert found.job["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example/worker@sha256:1"


@pytest.mark.parametrize("path", ["/store", "/store/inner", "/hub", "/hub/models"])
def test_a_volume_of_the_spec_does_not_lie_in_the_store_or_the_administrators(path: str) -> None:
    site = with_pod(
        volumes=[{"name": "hub", "emptyDir": {}}], volumeMounts=[{"name": "hub", "mountPath": "/hub"}],
    )  # fmt: skip
    wanted = {"volumes": [{"name": "mine", "mount_path": path, "claim": "mine"}]}
    with pytest.raises(CannotRender) as refused:
        pod(site, resources={"pod": wanted})
    (problem,) = refused.value.problems
    assert problem.path == "resources.pod.volumes.0.mount_path"
    assert "is taken" in problem.message
    assert "/mnt/mine" in problem.message


def test_a_spec_does_not_undo_what_the_administrator_decides() -> None:
    site = with_pod(nodeSelector={"pool": "gpu"}, volumes=[{"name": "hub", "emptyDir": {}}])
    volume = {"name": "hub", "mount_path": "/mnt/hub", "claim": "mine"}
    with pytest.raises(CannotRender) as refused:
        pod(site, resources={"pod": {"node_selector": {"pool": "other"}, "volumes": [volume]}})
    found = {problem.path: problem.message for problem in refused.value.problems}
    assert set(found) == {"resources.pod.node_selector.pool", "resources.pod.volumes.0.name"}
    assert "`gpu`" in found["resources.pod.node_selector.pool"]
    assert pod(site, resources={"pod": {"node_selector": {"pool": "gpu"}}})["nodeSelector"] == {"pool": "gpu"}


def test_a_secret_is_named_and_never_read() -> None:
    fields = {"resources": {"pod": {"secrets": {"HF_TOKEN": "hub/token"}, "env": {"OTHER": "x"}}}}
    [found] = [entry for entry in container(**fields)["env"] if entry["name"] == "HF_TOKEN"]
    assert found == {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
