"""What the README and docs/deploy.md say of deploying, done as it stands: from a clean cluster to a trained model."""

import json
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart import release
from tests.chart.reached import reachable
from tests.chart.rendering import ROOT
from tests.chart.words import block, replaced, run
from tests.e2e.plane import free_port, wait_until
from tests.kubernetes.fixtures import AnyCluster
from tests.kubernetes.namespace import hurry, is_gone, machine, remove, share
from tests.kubernetes.plane import rehearsal

PAGE = "docs/deploy.md"
SYSTEM, JOBS = "rlhf-system", "rlhf"
BY_HELM = block(PAGE, "By Helm")
TO_A_MODEL = BY_HELM[BY_HELM.index("kubectl -n rlhf-system port-forward") :]


@dataclass
class Ground:
    """What stands for the reader's own cluster: images, a folder, and a class of volumes."""

    cluster: AnyCluster
    image: str
    store: Path
    folder: Path
    port: int

    def machine(self) -> str:
        """A command that brings this machine's Python to the workers, whose image here holds none."""
        objects, _ = machine(JOBS)
        file = self.folder / "machine.json"
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        return f"kubectl apply -f {file}"

    def data(self) -> None:
        """SQLite's volume, as a class of volumes would make it."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        share(folder)
        volume = release.volume(SYSTEM, "rlhf-data", folder)
        self.cluster.kubectl("apply", "-f", "-", input=json.dumps(volume))

    def worker(self) -> dict[str, Any]:
        """The workers' pod."""
        return {"image": self.cluster.image, **machine(JOBS)[1]}

    def run(self, script: str) -> str:
        return run(self.cluster, script, RLHF_SERVER=f"http://127.0.0.1:{self.port}")

    def forwarded(self, script: str) -> str:
        return replaced(script, {"8000:80": f"{self.port}:80"})

    def names(self, namespace: str, kinds: str = "all") -> list[str]:
        return self.cluster.kubectl("-n", namespace, "get", kinds, "-o", "name").split()

    def clear(self) -> None:
        """Nothing of an installation is left."""
        for name in (SYSTEM, JOBS):
            remove(self.cluster, name)
            self.cluster.http.delete(f"/api/v1/persistentvolumes/{name}-rlhf-store")
        self.cluster.http.delete(f"/api/v1/persistentvolumes/{SYSTEM}-rlhf-data")

        def gone() -> bool:
            left = [name for name in (SYSTEM, JOBS) if not is_gone(self.cluster, name)]
            for name in left:
                hurry(self.cluster, name)
            return not left

        wait_until(gone, seconds=90, what="the end of both namespaces")


@pytest.fixture
def ground(cluster: AnyCluster, api_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    store = tmp_path_factory.mktemp("store")
    share(store)
    made = Ground(cluster, api_image, store, tmp_path_factory.mktemp("words"), free_port())
    made.clear()
    made.data()
    yield made
    made.clear()


def test_the_readme_says_it_as_the_page_does() -> None:
    assert block("README.md", "Deploying it") == BY_HELM


def test_from_a_clean_cluster_to_a_trained_model_and_to_none_of_it_by_helm(
    ground: Ground, postgres: Callable[[], str]
) -> None:
    repository, _, tag = ground.image.rpartition(":")
    workers = ground.folder / "worker.yaml"
    given = ground.worker()
    name, _, version = given.pop("image").rpartition(":")
    workers.write_text(yaml.safe_dump({"worker": {"image": {"repository": name, "tag": version}, **given}}))
    script = replaced(
        ground.forwarded(BY_HELM),
        {
            "image.repository=registry.example/rlhf-operator": f"image.repository={repository} --set image.tag={tag}",
            "--set worker.image.repository=registry.example/rlhf-worker": f"--values {workers}",
            "store.volume.nfs.server=nfs.example": f"store.volume.hostPath.path={ground.store}",
            "--set store.volume.nfs.path=/exports/rlhf": "--set store.volume.hostPath.type=Directory",
            "\nkubectl -n rlhf-system rollout": f"\n{ground.machine()}\nkubectl -n rlhf-system rollout",
        },
    )
    said = ground.run(script)
    assert re.search(r"job-\w+: succeeded", said), said
    assert said.rstrip().splitlines()[-1].startswith("✓ tiny succeeded"), said
    with reachable(ground.cluster, postgres()) as url:
        ours = {"postgresql://rlhf:…@db.example:5432/rlhf": url}
        ground.run(replaced(block(PAGE, "The database"), ours))
        wait_until(lambda: len(ground.names(SYSTEM, "pods")) == 4, what="the end of the pods with SQLite")
        ground.run(block(PAGE, "Upgrading, going back, taking it away"))
    assert ground.names(JOBS) == []
    left = ground.names(SYSTEM, "deployments,services,configmaps,networkpolicies,jobs")
    assert left == ["configmap/kube-root-ca.crt"]


def test_from_a_clean_cluster_to_a_trained_model_and_to_none_of_it_by_kubectl(ground: Ground) -> None:
    manifests = ground.folder / "manifests"
    shutil.copytree(ROOT / "manifests", manifests)
    repository, _, tag = ground.image.rpartition(":")
    change(
        manifests / "overlays/sqlite/kustomization.yaml",
        {"{name: rlhf-operator, newTag: 0.1.0}": f"{{name: rlhf-operator, newName: {repository}, newTag: {tag}}}"},
    )
    (manifests / "base/worker-pod.yaml").write_text(yaml.safe_dump(ground.worker()))
    folder = f"hostPath: {{path: {ground.store}, type: Directory}}"
    change(manifests / "store/volumes.yaml", {"nfs: {server: nfs.example, path: /exports/rlhf}": folder})
    script = replaced(
        block(PAGE, "By kubectl"),
        {"-k manifests/overlays/sqlite": f"-k {manifests}/overlays/sqlite\n{ground.machine()}"},
    )
    said = ground.run(script + ground.forwarded(TO_A_MODEL))
    assert said.rstrip().splitlines()[-1].startswith("✓ tiny succeeded"), said
    client = release.admin(ground.cluster, SYSTEM)
    job = client.jobs.create(rehearsal(6000)).id
    wait_until(lambda: client.jobs.get(job).phase == "running", what="a job that runs")
    change(
        manifests / "overlays/sqlite/kustomization.yaml",
        {"\npatches:": "\ncommonAnnotations: {release: two}\npatches:"},
    )
    ground.run(
        f"kubectl apply -k {manifests}/overlays/sqlite && kubectl -n {SYSTEM} rollout status deployment/rlhf-api"
    )
    after = client.jobs.get(job)
    assert (after.phase, after.attempt) == ("running", 1)
    copied = block("docs/backup.md", "**In pods: SQLite**")
    ground.run(replaced(copied, {"> rlhf.db.copy": f"> {ground.folder}/rlhf.db.copy"}))
    with sqlite3.connect(ground.folder / "rlhf.db.copy") as database:
        phases = database.execute("SELECT phase FROM jobs ORDER BY created_at").fetchall()
    assert phases == [("succeeded",), ("running",)]
    away = block(PAGE, "By `kubectl`, ")
    ground.run(replaced(away, {"-k manifests/": f"-k {manifests}/"}))
    for name in (SYSTEM, JOBS):
        assert ground.cluster.http.get(f"/api/v1/namespaces/{name}").status_code == 404
    # What lies in the store stays.
    assert [*ground.store.glob("jobs/*/a1")]


@pytest.mark.soak
def test_two_of_everything_by_kubectl_finish_a_job(ground: Ground, postgres: Callable[[], str]) -> None:
    manifests = ground.folder / "manifests"
    shutil.copytree(ROOT / "manifests", manifests)
    repository, _, tag = ground.image.rpartition(":")
    change(
        manifests / "overlays/postgresql/kustomization.yaml",
        {"{name: rlhf-operator, newTag: 0.1.0}": f"{{name: rlhf-operator, newName: {repository}, newTag: {tag}}}"},
    )
    (manifests / "base/worker-pod.yaml").write_text(yaml.safe_dump(ground.worker()))
    folder = f"hostPath: {{path: {ground.store}, type: Directory}}"
    change(manifests / "store/volumes.yaml", {"nfs: {server: nfs.example, path: /exports/rlhf}": folder})
    database = block(PAGE, "The database").splitlines()[0]
    with reachable(ground.cluster, postgres()) as url:
        script = replaced(
            block(PAGE, "By kubectl"),
            {
                "kubectl apply -k manifests/overlays/sqlite": f"{database}\n"
                f"kubectl apply -k {manifests}/overlays/postgresql\n{ground.machine()}"
            },
        )
        script = replaced(script, {"postgresql://rlhf:…@db.example:5432/rlhf": url})
        script += f"\nkubectl -n {SYSTEM} rollout status deployment/rlhf-operator\n"
        said = ground.run(script + ground.forwarded(TO_A_MODEL))
        assert said.rstrip().splitlines()[-1].startswith("✓ tiny succeeded"), said
        pods = [name for name in ground.names(SYSTEM, "pods") if "rlhf-" in name]
        assert sorted(name.rpartition("-")[0].rpartition("-")[0] for name in pods) == (
            ["pod/rlhf-api"] * 2 + ["pod/rlhf-operator"] * 2
        )
        ground.run(f"kubectl delete -k {manifests}/overlays/postgresql")


def change(file: Path, ours: dict[str, str]) -> None:
    file.write_text(replaced(file.read_text(), ours))
