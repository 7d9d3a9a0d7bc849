"""The dashboard and the alerts ask for figures that there are, and the guide tells of all of them."""

import json
import re
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from api.domain.job import Phase
from api.telemetry import Telemetry
from tests.chart.rendering import CHART, ROOT, chart, identity, installed, kustomized, plain

# Prometheus' own: whether a target answered, and what it says of every target that a ServiceMonitor finds.
UP, OF_TARGETS = "up", {"namespace", "service"}
VALUES = {
    "phase": {phase.value for phase in Phase},
    "outcome": {"accepted", "refused", "over", "crowded", "failed"},
    "method": {"GET"},
    "status": {"500", "503", "507"},
}


def exposed() -> dict[str, set[str]]:
    """The labels of each figure, by the names that Prometheus knows it by."""
    found = {UP: set()}
    for figure in vars(Telemetry()).values():
        if isinstance(figure, MetricWrapperBase):
            (family,) = figure.describe()
            kinds = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
            for ending in kinds[family.type]:
                found[family.name + ending] = {*figure._labelnames, *(["le"] if ending == "_bucket" else [])}
    return found


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]
    return list(group["rules"])


def selectors(query: str) -> list[Any]:
    """Every `name{label="value"}` of a query. Raises ValueError for one that Prometheus would not take."""
    found: list[Any] = []

    def look(part: Any) -> None:
        if isinstance(part, promql_parser.VectorSelector):
            found.append(part)

    promql_parser.walk(promql_parser.parse(query), look)
    return found


def wrong(query: str) -> list[str]:
    """What a query asks for that there is not."""
    known, found = exposed(), []
    for selector in selectors(query):
        if selector.name not in known:
            found.append(f"{selector.name} is no figure")
            continue
        for matcher in selector.matchers.matchers:
            if matcher.name not in known[selector.name] | OF_TARGETS:
                found.append(f"{selector.name} has no label {matcher.name}")
            elif matcher.name in VALUES:
                wanted = matcher.value.split("|") if matcher.op == promql_parser.MatchOp.Re else [matcher.value]
                given = VALUES[matcher.name]
                found += [
                    f"no {matcher.name} is {each}" for each in wanted if not any(re.fullmatch(each, v) for v in given)
                ]
    return found


@pytest.mark.quick
@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_asks_for_figures_that_there_are_in_words_that_prometheus_takes(alert: dict[str, Any]) -> None:
    asked = selectors(alert["expr"])
    assert asked
    assert wrong(alert["expr"]) == []
    # An installation is told of its own jobs alone.
    for selector in asked:
        assert ("namespace", "$namespace") in {(each.name, each.value) for each in selector.matchers.matchers}
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"].keys() == {"summary", "description"}


@pytest.mark.quick
def test_what_is_no_figure_is_seen() -> None:
    assert wrong('sum(rlhf_job{namespace="a"}) > 0') == ["rlhf_job is no figure"]
    assert wrong('rate(rlhf_reports_total{outcome="lost"}[5m]) > 0') == ["no outcome is lost"]
    assert wrong('max(rlhf_jobs{state="queued"})') == ["rlhf_jobs has no label state"]
    with pytest.raises(ValueError, match="expected type matrix"):
        wrong("rate(rlhf_reports_total)")


@pytest.mark.quick
def test_the_dashboard_asks_for_figures_that_there_are() -> None:
    document = json.loads((CHART / "files" / "dashboard.json").read_text())
    asked = [target["expr"] for panel in document["panels"] for target in panel["targets"]]
    for query in asked:
        assert wrong(query) == [], query
    names = {selector.name for query in asked for selector in selectors(query)}
    assert {"rlhf_jobs", "rlhf_reports_total", "rlhf_requests_total", "rlhf_request_seconds_bucket"} <= names
    variables = [one["query"]["query"] for one in document["templating"]["list"] if one["type"] == "query"]
    assert {name for query in variables for name in re.findall(r"\brlhf_\w+", query)} <= exposed().keys()


@pytest.mark.quick
def test_the_guide_tells_of_every_figure_and_every_alert_and_of_no_other() -> None:
    guide = (ROOT / "docs/monitoring.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|", guide, re.M)
    told = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed()} - {UP}
    assert {row for row in rows if row.startswith("rlhf_")} == told
    assert [row for row in rows if row.startswith("Rlhf")] == [alert["alert"] for alert in alerts()]


def test_kustomize_has_the_same_monitor_and_the_same_alerts() -> None:
    there = {identity(made) for made in chart()}
    asked = installed(chart("serviceMonitor.enabled=true", "alerts.enabled=true"))
    by_helm = {identity(made): plain(made) for made in asked if identity(made) not in there}
    by_kustomize = {identity(made): plain(made) for made in kustomized("monitoring")}
    assert by_helm == by_kustomize
    assert {made["kind"] for made in by_helm.values()} == {"ServiceMonitor", "PrometheusRule"}
