"""The chart on a real cluster: installed, tested, upgraded, rolled back, removed and installed anew, around one job."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from client import Client
from client.records import Job
from tests.chart.listing import everything
from tests.chart.live import Picture, Talk, picture
from tests.chart.release import NAME, PREVIOUS, Release, release
from tests.chart.words import block, replaced, run
from tests.e2e.plane import wait_until
from tests.images import postgres
from tests.images.builder import Built
from tests.kubernetes.fixtures import AnyCluster
from tests.kubernetes.namespace import Namespace, share
from tests.kubernetes.plane import rehearsal

DATABASE = f"data-{NAME}-postgresql-0"
LONG = 6000
"""Steps of a job that outlasts its test: 10 minutes."""
ABSENCE = 2
"""Steps, of 20 seconds, of a job that ends when the control plane is back, or while it is away."""
OURS = {"api", "operator", "postgresql", "hook", "worker 0", "worker 1", "other worker"}


@pytest.fixture
def postgres_image(cluster: AnyCluster, tmp_path: Path) -> Built:
    """What the chart brings along, on every node."""
    built = postgres.build(tmp_path)
    cluster.load(built.name, built.archive)
    return built


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of a database's volume: where pods may enter it."""
    made = Path(tempfile.mkdtemp(prefix="rlhf-data-"))
    share(made)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def made(
    cluster: AnyCluster, namespace: Namespace, api_image: str, postgres_image: Built, folder: Path
) -> Iterator[Release]:
    """A release with two of everything and a PostgreSQL of its own, not installed yet; uninstalling it stops no job."""
    repository, _, tag = postgres_image.name.rpartition(":")
    (port,) = {
        port["port"]
        for port in cluster.http.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").json()[
            "ports"
        ]
    }
    values = {
        "replicas": 2,
        "postgresql": {"enabled": True, "image": {"repository": repository, "tag": tag}},
        "networkPolicy": {"apiServerPorts": [443, port]},
        "uninstall": {"stopJobs": False},
    }
    with release(cluster, namespace, api_image, {DATABASE: folder}, **values) as given:
        yield given


def runs(client: Client, job: str) -> Job:
    """The job, once it runs."""
    wait_until(lambda: client.jobs.get(job).phase == "running", what=f"{job} that runs")
    return client.jobs.get(job)


def pods_of(made: Release, job: str) -> set[tuple[str, str]]:
    """Names and UIDs of what runs of a job. None of it was ever started anew."""
    path = f"/api/v1/namespaces/{made.jobs.name}/pods"
    found = made.cluster.http.get(path, params={"labelSelector": f"rlhf-operator/job={job}"}).json()["items"]
    for pod in found:
        assert [each["restartCount"] for each in pod["status"]["containerStatuses"]] == [0]
    return {(pod["metadata"]["name"], pod["metadata"]["uid"]) for pod in found}


def own_pods(made: Release) -> set[str]:
    """The names of the pods of the API and of the operator."""
    mine = "app.kubernetes.io/component in (api, operator)"
    return {*made.kubectl("get", "pods", "-l", mine, "-o", "name").split()}


def passes(made: Release, client: Client, job: str) -> Picture:
    """`helm test`, which succeeds; and what there was to be seen while it ran."""
    helm = subprocess.Popen(
        made.command("test", NAME, "--logs", "--timeout", "3m"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip

    def seen() -> Picture | None:
        return picture(made, job, client.jobs.newest().id)

    taken = wait_until(seen, what="all kinds of pods at once")
    said, _ = helm.communicate(timeout=200)
    assert helm.returncode == 0, f"{said}\n{made.story()}"
    assert ": succeeded" in said
    return taken


def talks_that_must_be(seen: Picture) -> set[Talk]:
    """The whole table: nothing else is allowed from, or to, anything of an installation."""
    api_server = next(iter(seen.ports["apiserver"]))
    workers = ("worker 0", "worker 1")
    names = {(who, "internet", 53, protocol) for who in OURS - {"postgresql"} for protocol in ("UDP", "TCP")}
    return names | {
        *((who, "api", 8000, "TCP") for who in ("hook", "visitor", "neighbour")),
        *((who, "api", 8001, "TCP") for who in (*workers, "other worker")),
        *((who, "postgresql", 5432, "TCP") for who in ("api", "operator")),
        *((who, whom, port, "TCP") for who in workers for whom in workers if who != whom for port in (29400, 29500)),
        # The hub, and Kubernetes under the address of its Service.
        *((who, "internet", 443, "TCP") for who in ("api", "operator")),
        ("operator", "apiserver", *api_server),
    }


def backed_up(made: Release, folder: Path) -> bytes:
    """The chart's PostgreSQL as the guide has it backed up."""
    command = block("docs/backup.md", "**In pods: the PostgreSQL of the chart**")
    ours = {"-n rlhf-system": f"-n {made.namespace}", "> rlhf.dump": f"> {folder}/rlhf.dump"}
    run(made.cluster, replaced(command, ours))
    return (folder / "rlhf.dump").read_bytes()


def kept(notes: str) -> set[str]:
    """What the notes say that an end of the release leaves, as `everything` has it."""
    found = set()
    for kind, name, _, namespace in re.findall(r"^  (\w+) (\S+)( in (\S+))?$", notes.partition("It keeps:")[2], re.M):
        found.add(f"{kind}s {namespace}/{name}" if namespace else f"{kind}s {name}")
    return found


def test_a_release_is_installed_tested_upgraded_rolled_back_removed_and_installed_anew_around_a_job_that_runs(
    made: Release, tmp_path: Path
) -> None:
    namespaces = (made.namespace, made.jobs.name)
    before = everything(made.cluster, *namespaces)
    made.install(PREVIOUS)
    client = made.client()
    job = client.jobs.create(rehearsal(LONG, resources={"nodes": 2})).id
    runs(client, job)
    pods = pods_of(made, job)
    assert len(pods) == 2
    figures = httpx.get(f"{made.url()}/metrics", timeout=30).text
    assert "rlhf_operator_leads 1.0" in figures
    assert "rlhf_operator_troubled 0.0" in figures

    before_it = own_pods(made)
    # The pods of the two charts may be the same, to the letter: these are replaced, whatever the chart says.
    made.values["podAnnotations"] = {"release": "two"}
    made.upgrade()
    wait_until(lambda: before_it.isdisjoint(own_pods(made)), what="the end of the pods of before")
    seen = passes(made, client, job)
    assert {talk for talk in seen.talks() if OURS & {*talk[:2]}} == talks_that_must_be(seen)
    assert len(replace(seen, policies=[]).talks()) > 2 * len(seen.talks())
    assert backed_up(made, tmp_path).startswith(b"PGDMP")
    before_it = own_pods(made)
    made.helm("rollback", NAME, "1", "--wait", "--timeout", "4m")
    wait_until(lambda: before_it.isdisjoint(own_pods(made)), what="the end of the pods of the later release")
    # The key is the one that was drawn first.
    client = made.client()
    assert (runs(client, job).attempt, pods_of(made, job)) == (1, pods)

    other = client.jobs.create(rehearsal(ABSENCE, stage={"seconds_per_step": 20, "output": True})).id
    runs(client, other)
    made.helm("uninstall", NAME, "--wait", "--timeout", "4m")
    assert pods_of(made, job) == pods
    of_jobs = re.compile(rf"\S+ {made.jobs.name}/({job}|{other})-a1")

    def left() -> set[str]:
        return everything(made.cluster, *namespaces) - before

    wait_until(lambda: not any(f"pods {made.namespace}/" in each for each in left()), what="the end of its own pods")
    kinds = {each.split()[0] for each in left() if of_jobs.match(each)}
    assert kinds >= {"jobs", "pods", "secrets", "services", "networkpolicies"}
    remaining = {each for each in left() if not of_jobs.match(each)}

    made.values["uninstall"] = {"stopJobs": True}
    promised = kept(made.install())
    assert len(promised) == 7
    assert remaining == promised
    client = made.client()
    assert (runs(client, job).attempt, pods_of(made, job)) == (1, pods)
    done = client.jobs.wait(other, timeout=120)
    assert (done.phase, done.attempt) == ("succeeded", 1)

    made.helm("uninstall", NAME, "--wait", "--timeout", "4m")
    wait_until(lambda: left() <= promised, what=f"the end of all that is not kept: {left() - promised}")
    assert left() == promised
