"""What a spec asks of the cluster and this one does not give is a 422, on one machine and on Kubernetes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api.folder import FolderStore
from api.inputs import Resolver
from api.operator.site import WorkerPod
from api.settings import Settings, load
from api.store.database import Database
from tests.api.conftest import REHEARSAL, Plane, paths, plane_on
from tests.operator.rendered import SITE
from worker.contract.check import InvalidSpec, parse_spec

VOLUME = {"name": "mine", "mount_path": "/mnt/mine", "claim": "mine"}


@pytest.fixture
def on_kubernetes(settings: Settings, tmp_path: Path) -> Settings:
    """The same control plane, which makes Jobs; its API needs no cluster."""
    admin = "image: worker\nvolumes: [{name: hub, emptyDir: {}}]\nvolumeMounts: [{name: hub, mountPath: /mnt/hub}]\n"
    (tmp_path / "worker-pod.yaml").write_text(admin)
    given = {name: getattr(settings, name) for name in type(settings).model_fields}
    return load(
        **given
        | {
            "cluster": "kubernetes",
            "worker_pod": tmp_path / "worker-pod.yaml",
            "worker_url": "http://10.1.2.3:8001",
            "store_claim": "store",
            "store_mount": "/store",
        }
    )


async def test_one_machine_refuses_all_that_only_a_kubernetes_does(plane: Plane) -> None:
    spec = {
        **REHEARSAL,
        "resources": {"nodes": 2, "pod": {"volumes": [VOLUME]}},
        "queue": {"kueue": "team-a", "kueue_priority_class": "high"},
    }
    refused = await plane.http.post("/v1/jobs", json=spec)
    assert refused.status_code == 422
    wanted = {"resources.nodes", "resources.pod", "queue.kueue", "queue.kueue_priority_class"}
    said = {error["path"]: error["message"] for error in refused.json()["errors"]}
    assert set(said) == wanted
    assert said["resources.nodes"] == "this cluster is one machine; write 1, not 2"
    assert said["resources.pod"] == "needs a Kubernetes, and this cluster is one machine; leave it out"
    step = {"name": "both", "steps": {"one": spec}}
    assert set(paths(await plane.http.post("/v1/pipelines", json=step))) == {f"steps.one.{path}" for path in wanted}


async def test_a_dry_run_on_one_machine_has_no_manifest(plane: Plane) -> None:
    answer = await plane.http.post("/v1/jobs", params={"dry_run": True}, json=REHEARSAL)
    assert answer.json()["manifest"] is None


async def test_a_dry_run_on_kubernetes_tells_the_objects_and_stores_nothing(on_kubernetes: Settings) -> None:
    spec = {**REHEARSAL, "resources": {"nodes": 2, "pod": {"volumes": [VOLUME]}}, "queue": {"kueue": "team-a"}}
    async with plane_on(on_kubernetes) as plane:
        answer = await plane.http.post("/v1/jobs", params={"dry_run": True}, json=spec)
        assert answer.status_code == 200, answer.text
        assert (await plane.http.get("/v1/jobs")).json()["data"] == []
    job, _, policy, secret = answer.json()["manifest"]
    assert (job["kind"], job["spec"]["parallelism"], job["spec"]["suspend"]) == ("Job", 2, True)
    assert {"name": "mine", "mountPath": "/mnt/mine"} in job["spec"]["template"]["spec"]["containers"][0][
        "volumeMounts"
    ]
    assert {"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [{"protocol": "TCP", "port": 8001}]} in policy[
        "spec"
    ]["egress"]
    assert secret["stringData"]["control-url"] == "http://10.1.2.3:8001"


@pytest.mark.parametrize(("path", "whose"), [("/store/mine", "the store"), ("/mnt/hub", "administrator")])
async def test_a_dry_run_refuses_a_volume_where_another_one_is(on_kubernetes: Settings, path: str, whose: str) -> None:
    spec = {**REHEARSAL, "resources": {"pod": {"volumes": [{**VOLUME, "mount_path": path}]}}}
    async with plane_on(on_kubernetes) as plane:
        answer = await plane.http.post("/v1/jobs", params={"dry_run": True}, json=spec)
    assert paths(answer) == ["resources.pod.volumes.0.mount_path"]
    assert whose in answer.json()["detail"]


async def test_what_does_not_fit_beside_the_administrators_part_is_refused_with_all_else(
    on_kubernetes: Settings, database: Database
) -> None:
    site = replace(SITE, pod=WorkerPod(image="w", nodeSelector={"pool": "gpu"}))
    resolver = Resolver(on_kubernetes, database, FolderStore(on_kubernetes.store_path), site)

    async def refused(**pod: Any) -> set[str]:
        stage = {"type": "sft", "model": "models/none", "data": "files/none"}
        with pytest.raises(InvalidSpec) as error:
            await resolver.resolve(parse_spec({"stage": stage, "resources": {"pod": pod}}), "default")
        return {problem.path for problem in error.value.problems}

    other = {"stage.model", "stage.data.train"}
    assert await refused() == other
    assert await refused(node_selector={"pool": "cpu"}) == {*other, "resources.pod.node_selector.pool"}
    assert await refused(volumes=[{**VOLUME, "mount_path": "/store"}]) == {*other, "resources.pod.volumes.0.mount_path"}
