"""A site, and the objects of an attempt there, as a function of a spec's fields."""

from dataclasses import replace
from typing import Any

from api.operator import manifest
from api.operator.manifest import Objects, objects
from api.operator.site import Site, WorkerPod
from worker.contract.check import parse_spec
from worker.contract.order import Order
from worker.contract.spec import JobSpec

SITE = Site(
    namespace="training",
    installation="blue",
    worker_url="http://rlhf-workers.rlhf.svc:8001",
    store_url="file:///store",
    store_claim="store",
    store_path="/store",
    pod=WorkerPod(image="registry.example/worker:1"),
)
TOKEN = "a-token"
NAME = "job-abcdefghijkl-a2"


def spec_of(**fields: Any) -> JobSpec:
    return parse_spec({"stage": {"type": "rehearse", "steps": 3}, **fields})


def order_of(spec: JobSpec, attempt: int = 2) -> Order:
    return Order(
        job="job-abcdefghijkl",
        attempt=attempt,
        spec=spec,
        inputs={},
        store="file:///store",
        control_url_file=f"{manifest.MOUNT}/control-url",
        token_file=f"{manifest.MOUNT}/token",
        termination_file="/dev/termination-log",
        log_folder="/store/log",
    )


def made(site: Site = SITE, **fields: Any) -> Objects:
    return objects(NAME, order_of(spec_of(**fields)), TOKEN, site)


def pod(site: Site = SITE, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = made(site, **fields).job["spec"]["template"]["spec"]
    return found


def container(site: Site = SITE, **fields: Any) -> dict[str, Any]:
    (found,) = pod(site, **fields)["containers"]
    return dict(found)


def variables(site: Site = SITE, **fields: Any) -> dict[str, str]:
    entries = container(site, **fields)["env"]
    assert len({entry["name"] for entry in entries}) == len(entries)
    return {entry["name"]: entry.get("value", "") for entry in entries}


def with_pod(**parts: Any) -> Site:
    return replace(SITE, pod=WorkerPod(image="w", **parts))
