"""The objects of an attempt, as a function of its order and of where it runs."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api.operator import manifest
from api.operator.labels import spec_sha256
from api.operator.manifest import CannotRender, Manifest, canonical, objects, owned_by, preview
from api.operator.podspec import LAUNCHER_PORT, RANKS_PORT
from api.operator.site import Site
from tests.operator.rendered import NAME, SITE, TOKEN, container, made, order_of, pod, spec_of, with_pod
from worker.contract.order import Input, Meeting, Order
from worker.contract.protocol import Exit
from worker.contract.spec import JobSpec

pytestmark = pytest.mark.quick


def test_a_job_has_a_pod_a_node_and_makes_none_again() -> None:
    job = made(resources={"nodes": 3}).job
    wanted = {
        "completionMode": "Indexed",
        "completions": 3,
        "parallelism": 3,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
    }
    assert {key: job["spec"][key] for key in wanted} == wanted
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    # What is over stays until its outcome is stored, and goes at once when it is removed.
    assert "ttlSecondsAfterFinished" not in job["spec"]
    assert "suspend" not in job["spec"]
    assert "finalizers" not in job["metadata"]


def test_all_four_have_the_attempts_name_in_the_sites_namespace_and_its_labels() -> None:
    found = made()
    labels = {
        "app.kubernetes.io/managed-by": "rlhf-operator",
        "rlhf-operator/installation": "blue",
        "rlhf-operator/job": "job-abcdefghijkl",
        "rlhf-operator/attempt": "2",
    }
    assert [each["kind"] for each in found.all()] == ["Job", "Service", "NetworkPolicy", "Secret"]
    for each in found.all():
        assert (each["metadata"]["name"], each["metadata"]["namespace"]) == (NAME, "training")
        assert each["metadata"]["labels"] == labels
        assert manifest.ours(each, SITE)
        assert manifest.attempt_of(each) == NAME
        assert not manifest.ours(each, replace(SITE, installation="green"))
    assert found.job["spec"]["template"]["metadata"]["labels"] == labels
    assert found.service["spec"]["selector"].items() <= labels.items()
    selected = dict(pair.split("=") for pair in manifest.selector(SITE).split(","))
    assert selected.items() <= labels.items()
    assert "rlhf-operator/job" not in selected


def test_what_is_somebody_elses_is_not_ours() -> None:
    for metadata in ({"name": NAME}, {"name": NAME, "labels": {"rlhf-operator/installation": "blue"}}):
        assert not manifest.ours({"metadata": metadata}, SITE)
        assert manifest.attempt_of({"metadata": metadata}) is None


@pytest.mark.parametrize("name", ["a" * 53, "1-a1", "Job-a1", "a-", ""])
def test_a_name_without_room_for_the_names_of_pods_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="52"):
        objects(name, order_of(spec_of()), TOKEN, SITE)


def test_equal_orders_give_equal_bytes_and_a_token_changes_the_secret_alone() -> None:
    wanted: dict[str, Any] = {"resources": {"nodes": 2, "pod": {"env": {"A": "b"}, "node_selector": {"x": "y"}}}}
    one, again = made(**wanted), made(**wanted)
    assert list(map(canonical, one.all())) == list(map(canonical, again.all()))
    other = objects(NAME, order_of(spec_of(**wanted)), "another token", SITE)
    assert [canonical(a) == canonical(b) for a, b in zip(one.all(), other.all(), strict=True)] == [True] * 3 + [False]
    assert TOKEN not in json.dumps([one.job, one.service, one.network_policy])


def test_a_fingerprint_tells_another_attempt_spec_input_or_control_plane_apart_and_no_image() -> None:
    def fingerprint(spec: JobSpec = spec_of(), attempt: int = 2, site: Site = SITE, **inputs: Input) -> object:
        order = order_of(spec, attempt).model_copy(update={"inputs": inputs})
        return manifest.fingerprint(objects(NAME, order, TOKEN, site).job)

    first = fingerprint()
    model = Input(reference="models/a", kind="model", location="x", sha256="1")
    others = [
        fingerprint(spec=spec_of(name="another")),
        fingerprint(attempt=3),
        fingerprint(site=replace(SITE, installation="green")),
        fingerprint(model=model),
        fingerprint(model=model.model_copy(update={"sha256": "2"})),
    ]
    assert len({first, *others}) == len(others) + 1
    # What an upgrade changes between two tries to create the same Job.
    assert fingerprint(site=with_pod(imagePullPolicy="Always")) == first
    assert fingerprint(spec=spec_of(queue={"priority": 0})) == first
    moved = model.model_copy(update={"location": "y"})
    assert fingerprint(model=moved) == fingerprint(model=model)
    assert manifest.fingerprint({"metadata": {"name": NAME}}) != first


def test_a_fingerprint_stays_when_a_newer_version_has_more_fields() -> None:
    class Newer(JobSpec):
        later: int = 3

    spec = spec_of(name="mine")
    newer = Newer.model_validate(spec.model_dump(mode="json"))
    assert spec_sha256(newer, {}) == spec_sha256(spec, {})
    assert spec_sha256(newer.model_copy(update={"later": 4}), {}) != spec_sha256(spec, {})


def test_the_first_rule_that_fits_a_failure_tells_its_cause() -> None:
    """As the Job controller goes through them (kubernetes/pkg/controller/job/pod_failure_policy.go)."""
    rules = made().job["spec"]["podFailurePolicy"]["rules"]
    assert {rule["action"] for rule in rules} == {"FailJob"}

    def first(code: int, *, disrupted: bool = False) -> Any:
        for rule in rules:
            if (codes := rule.get("onExitCodes")) is not None:
                if (code in codes["values"]) == (codes["operator"] == "In") and code != 0:
                    return codes["operator"], codes["values"]
            elif disrupted:
                return rule["onPodConditions"]
        return None

    for code in Exit:
        if code != Exit.DONE:
            assert first(code) == ("In", [code]), "each has a rule of its own"
    for code in (6, 134, 139, 255):
        assert first(code) == ("NotIn", [0])
    disruption = [{"type": "DisruptionTarget", "status": "True"}]
    for code in (Exit.STOPPED, Exit.KILLED, Exit.FAILED, 139):
        assert first(code, disrupted=True) == disruption, "an evicted pod is sent a signal, and that is not the cause"
    for code in (Exit.BAD_SPEC, Exit.BAD_DATA, Exit.DIVERGED, Exit.OUT_OF_MEMORY):
        assert first(code, disrupted=True) == ("In", [code]), "what a worker says of itself, no eviction makes it say"
    assert all(rule["onExitCodes"]["containerName"] == "worker" for rule in rules if "onExitCodes" in rule)


def test_pods_meet_by_the_names_of_a_headless_service() -> None:
    found = made(resources={"nodes": 2})
    service = found.service["spec"]
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
    assert found.job["spec"]["template"]["spec"]["subdomain"] == found.service["metadata"]["name"]
    assert [port["port"] for port in service["ports"]] == [LAUNCHER_PORT, RANKS_PORT]
    defaults = Meeting(host="x")
    assert (defaults.port, defaults.ranks_port) == (LAUNCHER_PORT, RANKS_PORT)


def test_the_secret_holds_what_the_launcher_reads_and_the_worker_can_read_it() -> None:
    spec = spec_of(name="mine")
    secret = objects(NAME, order_of(spec), TOKEN, SITE).secret
    contents = {key: base64.b64decode(value) for key, value in secret["data"].items()}
    assert contents["token"] == TOKEN.encode()
    assert contents["control-url"] == SITE.worker_url.encode()
    assert Order.model_validate_json(contents["order.json"]).spec == spec
    assert secret["immutable"] is True
    assert container()["args"] == ["--order", "/etc/rlhf/order.json"]
    volume = next(volume for volume in pod()["volumes"] if "secret" in volume)
    assert volume["secret"] == {"secretName": NAME, "defaultMode": 0o440}
    mount = next(mount for mount in container()["volumeMounts"] if mount["name"] == volume["name"])
    assert mount == {"name": volume["name"], "mountPath": "/etc/rlhf", "readOnly": True}
    context = pod()["securityContext"]
    # A Secret's files are root's and the group's: the worker is the group.
    assert context["fsGroup"] == context["runAsGroup"] == 10001


def test_an_order_that_no_secret_holds_is_refused_with_its_size() -> None:
    metadata = {f"key-{number}": "x" * 512 for number in range(16)}
    long = Input(reference="x" * 2**20, kind="path", location="/x", sha256="0")
    order = order_of(spec_of(metadata=metadata)).model_copy(update={"inputs": {"stage.data": long}})
    with pytest.raises(CannotRender, match="a Secret holds 1,048,576; shorten it"):
        objects(NAME, order, TOKEN, SITE)
    with pytest.raises(CannotRender, match="a Secret holds"):
        preview(order.spec, order.inputs, SITE)


def test_the_others_go_with_their_job() -> None:
    owned = owned_by(made(), "uid-1")
    assert "ownerReferences" not in owned.job["metadata"]
    for each in owned.dependents:
        assert each["metadata"]["ownerReferences"] == [
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": NAME,
                "uid": "uid-1",
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ]
        del each["metadata"]["ownerReferences"]
    assert list(map(canonical, owned.all())) == list(map(canonical, made().all()))


def test_kueue_is_left_to_begin_a_job_of_its_queue() -> None:
    job = made(queue={"kueue": "team-a", "kueue_priority_class": "high"}).job
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
    assert manifest.queued(job)
    assert not manifest.queued(made().job)


def policy(site: Site = SITE) -> dict[str, Any]:
    found: dict[str, Any] = made(site).network_policy["spec"]
    return found


def test_pods_talk_to_each_other_on_every_port_and_nobody_else_talks_to_them() -> None:
    found = policy()
    own = {
        "rlhf-operator/installation": "blue",
        "rlhf-operator/job": "job-abcdefghijkl",
        "rlhf-operator/attempt": "2",
    }
    assert found["podSelector"] == {"matchLabels": own}
    assert found["policyTypes"] == ["Ingress", "Egress"]
    assert found["ingress"] == [{"from": [{"podSelector": {"matchLabels": own}}]}]
    assert {"to": [{"podSelector": {"matchLabels": own}}]} in found["egress"]
    assert {"ports": [{"protocol": p, "port": 53} for p in ("UDP", "TCP")]} in found["egress"]
    assert len(found["egress"]) == 3


@pytest.mark.parametrize(
    ("url", "to", "port"),
    [
        ("http://10.1.2.3:8001", {"ipBlock": {"cidr": "10.1.2.3/32"}}, 8001),
        ("http://[fd00::1]:8001", {"ipBlock": {"cidr": "fd00::1/128"}}, 8001),
        (
            "http://workers:8001",
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "training"}}},
            8001,
        ),
        ("http://workers.rlhf", {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "rlhf"}}}, 80),
        (
            "https://workers.rlhf.svc.cluster.local",
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "rlhf"}}},
            443,
        ),
        ("https://workers.rlhf.example.com", None, 443),
    ],
)
def test_pods_reach_the_control_plane_wherever_it_is_at_its_port(
    url: str, to: dict[str, Any] | None, port: int
) -> None:
    rule = policy(replace(SITE, worker_url=url))["egress"][2]
    assert rule["ports"] == [{"protocol": "TCP", "port": port}]
    assert rule.get("to") == ([to] if to is not None else None)


def test_pods_reach_what_the_administrator_allows() -> None:
    rule = {"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}], "ports": [{"protocol": "TCP", "port": 443}]}
    assert policy(with_pod(egress=[rule]))["egress"][3:] == [rule]


def test_a_preview_is_what_would_be_made_with_sentences_for_what_is_secret() -> None:
    spec = spec_of(resources={"nodes": 2, "accelerator": "nvidia.com/gpu"})
    shown = preview(spec, {}, SITE)
    real = objects(
        "job-dry-run-a1", order_of(spec).model_copy(update={"job": "job-dry-run", "attempt": 1}), TOKEN, SITE
    )
    assert shown.all()[:3] == real.all()[:3]
    assert "data" not in shown.secret
    assert set(shown.secret["stringData"]) == set(real.secret["data"])
    assert shown.secret["stringData"]["token"].endswith(".")
    assert all("ownerReferences" not in each["metadata"] for each in shown.all())


def plain(value: Any) -> bool:
    """Whether a value is what JSON has."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(inner) for key, inner in value.items())
    return all(map(plain, value)) if isinstance(value, list) else type(value) in (str, int, bool)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "contract/stored").glob("*.json")), ids=lambda p: p.stem
)
def test_specs_of_every_stage_are_rendered_as_plain_json_without_nulls(path: Path) -> None:
    each: Manifest
    for each in objects(NAME, order_of(JobSpec.model_validate_json(path.read_text())), TOKEN, SITE).all():
        assert plain(each)
        assert json.loads(canonical(each)) == each
