"""Who may talk to whom: a table, held against the policies and the pods that are rendered."""

from typing import Any

import pytest

from api.operator.manifest import objects
from api.operator.site import Site, WorkerPod
from tests.chart.network import Place, allowed
from tests.chart.rendering import JOBS, NAMESPACE, Manifest, chart, overlay
from tests.operator.test_manifest import order_of, spec_of

OUTSIDE = Place()
BROWSER = Place("ingress", {"app": "proxy"})
STRANGER = Place(JOBS, {"app": "notebook"})
NEIGHBOUR = Place(NAMESPACE, {"app": "something-else"})

API, WORKERS, DATABASE, KUBERNETES, HUB, DNS = 8000, 8001, 5432, 6443, 443, 53
TABLE = [
    # from, to, port, may
    ("browser", "api", API, True),
    ("browser", "api", WORKERS, False),
    ("outside", "api", API, False),
    ("worker", "api", WORKERS, True),
    ("worker", "api", API, False),
    ("worker", "operator", API, False),
    ("worker", "database", DATABASE, False),
    ("worker", "outside", HUB, False),
    ("worker", "outside", KUBERNETES, False),
    ("worker", "worker", 29400, True),
    ("worker", "other worker", 29400, False),
    ("stranger", "api", API, False),
    ("stranger", "api", WORKERS, False),
    ("hook", "api", API, True),
    ("hook", "api", WORKERS, False),
    ("hook", "outside", HUB, False),
    ("hook", "database", DATABASE, False),
    ("api", "database", DATABASE, True),
    ("api", "outside", HUB, True),
    ("api", "outside", KUBERNETES, False),
    ("api", "outside", 80, False),
    ("api", "operator", API, False),
    ("api", "worker", 29400, False),
    ("operator", "database", DATABASE, True),
    ("operator", "outside", KUBERNETES, True),
    ("operator", "outside", 80, False),
    ("operator", "api", API, False),
    ("operator", "worker", 29400, False),
    ("browser", "operator", API, False),
    ("neighbour", "operator", API, False),
    ("neighbour", "database", DATABASE, False),
    ("browser", "database", DATABASE, False),
    ("database", "outside", HUB, False),
    ("database", "api", API, False),
]


def attempt(namespace: str, job: str) -> tuple[Place, Manifest]:
    """A worker's pod, and the policy that its operator makes for it."""
    url = f"http://rlhf-workers.{NAMESPACE}.svc:8001"
    site = Site(namespace, "blue", url, "file:///store", "rlhf-store", "/store", WorkerPod(image="rlhf-worker:0.1.0"))
    made = objects(f"{job}-a1", order_of(spec_of()), "token", site)
    return Place(namespace, made.job["spec"]["template"]["metadata"]["labels"]), made.network_policy


def places(rendered: list[Manifest]) -> dict[str, Place]:
    found = {"outside": OUTSIDE, "browser": BROWSER, "stranger": STRANGER, "neighbour": NEIGHBOUR}
    for made in rendered:
        if made["kind"] in ("Deployment", "StatefulSet", "Job"):
            labels = made["spec"]["template"]["metadata"]["labels"]
            component = labels["app.kubernetes.io/component"]
            found[{"postgresql": "database"}.get(component, component)] = Place(NAMESPACE, labels)
    return found


def held(rendered: list[Manifest], table: list[tuple[str, str, int, bool]], **more: Place) -> list[Any]:
    """The lines of the table that are not so."""
    worker, policy = attempt(JOBS, "job-abcdefghijkl")
    known = {**places(rendered), "worker": worker, "other worker": Place(JOBS, {**worker.labels, **_OTHER}), **more}
    policies = [policy, *(made for made in rendered if made["kind"] == "NetworkPolicy")]
    return [line for line in table if allowed(policies, known[line[0]], known[line[1]], line[2]) is not line[3]]


_OTHER = {"rlhf-operator/job": "job-another"}


def test_what_must_talk_may_and_nothing_else_with_a_database_of_the_chart() -> None:
    assert held(chart("replicas=2", "postgresql.enabled=true"), TABLE) == []


def test_what_must_talk_may_and_nothing_else_with_a_database_elsewhere() -> None:
    table = [line for line in TABLE if not {"database", "hook"} & {*line}]
    table += [(who, "outside", DATABASE, True) for who in ("api", "operator")]
    assert held(overlay("postgresql"), table) == []
    everywhere = chart("replicas=2", 'database.existingSecret="url"', "database.port=6432")
    assert held(everywhere, [("api", "outside", 6432, True), ("operator", "outside", 5432, False)]) == []


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("", 443), ("https://s3.example", 443), ("http://s3", 80), ("http://minio.s3.svc:9000/", 9000)],
)
def test_a_store_in_a_bucket_may_be_reached_by_whoever_serves_and_whoever_acts(endpoint: str, port: int) -> None:
    bucket = f'store.s3={{"bucket": "rlhf", "endpoint": "{endpoint}"}}'
    rendered = chart("replicas=2", 'database.existingSecret="url"', bucket)
    table = [(who, "outside", port, True) for who in ("api", "operator")]
    assert held(rendered, [*table, ("api", "outside", 9001, False), ("operator", "outside", 9001, False)]) == []
    assert not any(made["kind"].startswith("PersistentVolume") for made in rendered)


@pytest.mark.parametrize("rendered", [chart, lambda: overlay("sqlite")], ids=["chart", "manifests"])
def test_one_pod_that_does_all_may_what_both_may(rendered: Any) -> None:
    table = [
        (source, target, port, may or (source, port) == ("api", KUBERNETES))
        for source, target, port, may in TABLE
        if not {source, target} & {"operator", "database", "hook"}
    ]
    assert held(rendered(), table) == []


def test_everybody_may_look_up_names_and_the_database_calls_nobody() -> None:
    rendered = chart("replicas=2", "postgresql.enabled=true")
    policies = [made for made in rendered if made["kind"] == "NetworkPolicy"]
    known = places(rendered)
    for name, may in (("api", True), ("operator", True), ("hook", True), ("database", False)):
        for protocol in ("UDP", "TCP"):
            assert allowed(policies, known[name], OUTSIDE, DNS, protocol) is may, name


def test_an_administrator_says_who_may_call_the_api() -> None:
    rendered = chart(values="everything")
    table = [("browser", "api", API, True), ("neighbour", "api", API, False), ("hook", "api", API, True)]
    assert held(rendered, table) == []
    block = chart('networkPolicy.apiFrom=[{"ipBlock": {"cidr": "0.0.0.0/0"}}]')
    assert held(block, [("outside", "api", API, True)]) == []


def test_the_table_is_not_true_of_itself() -> None:
    rendered = [made for made in chart("replicas=2", "postgresql.enabled=true") if made["kind"] != "NetworkPolicy"]
    assert len(held(rendered, TABLE)) >= 15
