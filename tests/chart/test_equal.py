"""The chart and the manifests say the same."""

import pytest
import yaml

from tests.chart.rendering import ROOT, chart, identity, installed, overlay, plain

OVERLAYS = ["sqlite", "postgresql", "postgresql-s3"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_chart_makes_the_objects_of_each_overlay_field_for_field(name: str) -> None:
    by_helm = {identity(plain(made)): plain(made) for made in installed(chart(values=name))}
    by_kustomize = {identity(plain(made)): plain(made) for made in overlay(name)}
    assert by_helm.keys() == by_kustomize.keys()
    for what, made in by_kustomize.items():
        assert by_helm[what] == made, what


def test_what_the_comparison_looks_past_is_what_each_tool_says_of_itself_and_no_more() -> None:
    for made in [*chart(values="postgresql"), *overlay("postgresql")]:
        gone = set(made["metadata"].get("labels", {})) - set(plain(made)["metadata"]["labels"])
        assert gone <= {"app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart"}
    (config,) = [made for made in overlay("sqlite") if made["kind"] == "ConfigMap"]
    assert config["metadata"]["name"] != plain(config)["metadata"]["name"] == "rlhf-worker-pod"


def test_the_charts_role_is_the_one_of_the_manifests() -> None:
    (role,) = [made for made in chart() if made["kind"] == "Role"]
    given = yaml.safe_load((ROOT / "manifests/jobs/operator-role.yaml").read_text())
    assert role["rules"] == given["rules"]
    assert role["metadata"]["namespace"] == "rlhf"


def test_pods_start_anew_when_what_the_workers_are_made_of_changes() -> None:
    def mark(*settings: str) -> list[str]:
        made = [each for each in chart(*settings, values="postgresql") if each["kind"] == "Deployment"]
        return [each["spec"]["template"]["metadata"]["annotations"]["checksum/worker-pod"] for each in made]

    assert len(set(mark())) == 1
    assert set(mark()).isdisjoint(mark('worker.image.tag="2"'))
