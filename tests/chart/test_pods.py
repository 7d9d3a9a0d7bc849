"""The pods that are rendered: what they may do, what they are told, and when they are ready."""

from typing import Any

import pytest

from api.settings import Settings
from tests.chart.rendering import CHART, Manifest, chart, containers, identity, overlay, pod_of

RENDERED = {
    "sqlite by kustomize": lambda: overlay("sqlite"),
    "postgresql by kustomize": lambda: overlay("postgresql"),
    "the defaults": chart,
    "everything": lambda: chart(values="everything"),
}
# https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


@pytest.fixture(scope="module", params=RENDERED)
def rendered(request: pytest.FixtureRequest) -> list[Manifest]:
    return RENDERED[request.param]()


def pods(objects: list[Manifest]) -> dict[str, Manifest]:
    return {identity(made): pod_of(made) for made in objects if pod_of(made)}


def violations(spec: Manifest) -> list[str]:
    """What the restricted level has against a pod."""
    found = [field for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    whole = spec.get("securityContext", {})
    for volume in spec.get("volumes", []):
        found += [f"volume {kind}" for kind in set(volume) - {"name"} - VOLUMES]
    for each in [*spec.get("initContainers", []), *spec.get("containers", [])]:
        own = each.get("securityContext", {})
        merged = {**whole, **own}
        wanted: dict[str, Any] = {
            "runAsNonRoot": merged.get("runAsNonRoot") is True,
            "runAsUser": merged.get("runAsUser") != 0,
            "seccompProfile": merged.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities": own.get("capabilities", {}).get("drop") == ["ALL"] and not own["capabilities"].get("add"),
            "privileged": not own.get("privileged"),
            "hostPort": not any(port.get("hostPort") for port in each.get("ports", [])),
        }
        found += [f"{each['name']}: {what}" for what, holds in wanted.items() if not holds]
    return found


def test_the_restricted_level_admits_every_pod_on_a_root_folder_that_is_read_only(rendered: list[Manifest]) -> None:
    found = pods(rendered)
    assert found
    for what, spec in found.items():
        assert violations(spec) == [], what
        for each in [*spec.get("initContainers", []), *spec["containers"]]:
            assert each["securityContext"]["readOnlyRootFilesystem"] is True
            assert "/tmp" in [mount["mountPath"] for mount in each["volumeMounts"]]
            assert each["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in each["resources"]["limits"]


def test_what_the_restricted_level_refuses_is_seen() -> None:
    (spec,) = pods(overlay("sqlite")).values()
    spec["containers"][0]["securityContext"]["capabilities"]["add"] = ["SYS_ADMIN"]
    spec["securityContext"]["runAsNonRoot"] = False
    spec["volumes"].append({"name": "node", "hostPath": {"path": "/"}})
    said = violations(spec)
    assert "volume hostPath" in said
    assert "api: capabilities" in said
    assert "migrate: runAsNonRoot" in said


def test_only_what_acts_on_the_cluster_has_a_token(rendered: list[Manifest]) -> None:
    for what, spec in pods(rendered).items():
        acts = any(each.get("args") in (["--role", "operator"], ["--role", "all"]) for each in spec["containers"])
        assert spec["automountServiceAccountToken"] is acts, what
        assert not acts or spec["serviceAccountName"] == "rlhf-operator"
    for account in (made for made in rendered if made["kind"] == "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_every_variable_of_the_control_plane_is_a_setting(rendered: list[Manifest]) -> None:
    known = {name.upper() for name in Settings.model_fields} | {"HF_ENDPOINT"}
    ours = [each for made in rendered for each in containers(made) if each["image"] == "rlhf-operator:0.1.0"]
    served = [each for each in ours if "command" not in each]
    assert len(served) >= 2
    for each in served:
        names = [variable["name"] for variable in each["env"]]
        assert set(names) <= known, each["name"]
        assert len(names) == len(set(names)), each["name"]


def test_the_variables_are_settings_that_the_control_plane_takes(
    rendered: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in (each for made in rendered for each in containers(made)):
        if each.get("args", [""])[0] != "--role":
            continue
        with monkeypatch.context() as there:
            for variable in each["env"]:
                there.setenv(variable["name"], variable.get("value", "postgresql://rlhf:secret@db:5432/rlhf"))
            found = Settings()
        assert found.auth == "keys"
        assert str(found.store_path) == "/store"
        assert found.sqlite is (each["args"][1] == "all")
        assert found.worker_url == "http://rlhf-workers.rlhf-system.svc:8001"


def test_a_store_in_a_bucket_is_one_that_the_control_plane_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = 'store.s3={"bucket": "rlhf", "prefix": "a/b", "scratch": "200Gi", "existingSecret": "rlhf-s3"}'
    for each in (c for made in chart(bucket) for c in containers(made) if c.get("args", [""])[0] == "--role"):
        assert not any(mount["name"] == "store" for mount in each["volumeMounts"])
        with monkeypatch.context() as there:
            for variable in each["env"]:
                there.setenv(variable["name"], variable.get("value", "of-a-secret"))
            found = Settings()
        assert (found.store_url, found.store_claim) == ("s3://rlhf/a/b", "")
        assert (found.store_secret, found.scratch_size) == ("rlhf-s3", "200Gi")


def test_numbers_keep_their_digits() -> None:
    made = next(each for each in containers_of(chart(values="everything"), "api") if each["name"] == "api")
    given = {variable["name"]: variable.get("value") for variable in made["env"]}
    assert (given["MAX_FILE"], given["BACK_OFF"], given["LEASE"]) == ("1073741824", "2.5", "20")


def containers_of(objects: list[Manifest], component: str) -> list[Manifest]:
    return [
        each
        for made in objects
        if made["kind"] == "Deployment" and made["metadata"]["labels"]["app.kubernetes.io/component"] == component
        for each in containers(made)
    ]


def test_readiness_looks_at_the_database_and_liveness_does_not(rendered: list[Manifest]) -> None:
    served = [each for made in rendered for each in containers(made) if each.get("args", [""])[0] == "--role"]
    assert served
    for each in served:
        assert each["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert each["livenessProbe"]["httpGet"]["path"] == "/livez"
        ports = {port["name"]: port["containerPort"] for port in each["ports"]}
        asked = {each[probe]["httpGet"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
        (port,) = [ports[name] for name in asked]
        given = {variable["name"]: variable.get("value") for variable in each["env"]}
        assert str(port) == given["HEALTH_PORT" if each["args"][1] == "operator" else "PORT"]


def test_services_lead_to_ports_that_pods_have(rendered: list[Manifest]) -> None:
    templates = [made["spec"]["template"] for made in rendered if made["kind"] in ("Deployment", "StatefulSet")]
    for service in (made for made in rendered if made["kind"] == "Service"):
        wanted = service["spec"]["selector"].items()
        (found,) = [each for each in templates if wanted <= each["metadata"]["labels"].items()]
        names = {port["name"] for each in found["spec"]["containers"] for port in each["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def test_one_pod_has_sqlites_file_at_a_time() -> None:
    for objects in (overlay("sqlite"), chart()):
        (deployment,) = [made for made in objects if made["kind"] == "Deployment"]
        assert deployment["spec"]["replicas"] == 1
        assert deployment["spec"]["strategy"] == {"type": "Recreate"}
        assert {"name": "data", "persistentVolumeClaim": {"claimName": "rlhf-data"}} in pod_of(deployment)["volumes"]


def test_replicas_spread_and_survive_a_drain() -> None:
    objects = overlay("postgresql")
    for deployment in (made for made in objects if made["kind"] == "Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        spread = pod_of(deployment)["topologySpreadConstraints"]
        assert [each["topologyKey"] for each in spread] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
        assert all(each["labelSelector"]["matchLabels"] == labels for each in spread)
        budgets = [made["spec"] for made in objects if made["kind"] == "PodDisruptionBudget"]
        assert {"maxUnavailable": 1, "selector": {"matchLabels": labels}} in budgets


def test_what_is_optional_is_there_when_it_is_asked_for() -> None:
    found = {made["kind"]: made for made in chart(values="everything")}
    assert found["Ingress"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"] == "rlhf"
    assert found["HTTPRoute"]["spec"]["rules"][0]["backendRefs"] == [{"name": "rlhf", "port": 80}]
    assert found["ServiceMonitor"]["spec"]["endpoints"][0]["port"] == "http"
    assert {"Ingress", "HTTPRoute", "ServiceMonitor", "StatefulSet", "PersistentVolume"}.isdisjoint(
        made["kind"] for made in chart()
    )


def test_the_workers_pod_is_one_that_the_control_plane_takes(tmp_path: Any) -> None:
    from api.operator.site import load_worker_pod

    for objects in (chart(), chart(values="everything"), overlay("sqlite")):
        (text,) = [made["data"]["worker-pod.yaml"] for made in objects if "worker-pod" in made["metadata"]["name"]]
        (tmp_path / "worker-pod.yaml").write_text(text)
        assert load_worker_pod(tmp_path / "worker-pod.yaml").image == "rlhf-worker:0.1.0"


def test_what_an_uninstall_keeps_is_named_to_whoever_installs() -> None:
    kept = {
        (made["kind"].lower(), made["metadata"]["name"])
        for settings in ((), ("postgresql.enabled=true", 'store.volume={"nfs":{"server":"a","path":"/b"}}'))
        for made in chart(*settings)
        if made["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"
    }
    notes = (CHART / "templates" / "NOTES.txt").read_text()
    assert {kind for kind, _ in kept} == {
        "namespace", "secret", "persistentvolumeclaim", "persistentvolume",
    }  # fmt: skip
    for kind, _ in kept:
        assert f"\n  {kind} " in notes


def test_an_uninstall_stops_jobs_or_leaves_them_by_a_value() -> None:
    def hooks(*settings: str) -> list[str]:
        found = [made for made in chart(*settings) if made["kind"] == "Job"]
        return [made["metadata"]["annotations"]["helm.sh/hook"] for made in found]

    assert hooks() == ["pre-delete"]
    assert hooks("uninstall.stopJobs=false") == []


def test_every_namespace_for_jobs_has_the_role_and_the_way_to_report() -> None:
    made = chart('jobs.otherNamespaces=["team-a"]', 'store.volume={"nfs":{"server":"s","path":"/p"}}')
    by_kind = {
        kind: {one["metadata"]["namespace"] for one in made if one["kind"] == kind}
        for kind in ("Role", "RoleBinding", "PersistentVolumeClaim")
    }
    assert by_kind["Role"] == by_kind["RoleBinding"] == {"rlhf", "team-a"}
    assert {"rlhf", "team-a"} < by_kind["PersistentVolumeClaim"]
    assert {one["metadata"]["name"] for one in made if one["kind"] == "Namespace"} == {"rlhf", "team-a"}
    [policy] = [one for one in made if one["kind"] == "NetworkPolicy" and one["metadata"]["name"].endswith("-api")]
    people, workers = policy["spec"]["ingress"]
    assert people["from"][0]["namespaceSelector"]["matchExpressions"][0]["values"] == ["rlhf", "team-a"]
    where = [entry["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for entry in workers["from"]]
    assert where == ["rlhf", "team-a"]
