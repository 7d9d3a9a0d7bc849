"""Secrets that a spec names: they reach the worker, and nothing else ever shows them."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.cluster.cluster import Cluster
from tests.kubernetes.namespace import Namespace
from tests.kubernetes.plane import Plane, operator_kubeconfig, rehearsal, running
from tests.kubernetes.processes import ranks

CANARY = "bramblefinch-5c1d77"
LABEL = "rlhf-operator/project"


@pytest.fixture(scope="module")
def database(postgres: Callable[[], str]) -> str:
    return postgres()


@pytest.fixture(scope="module")
def told(
    cluster: Cluster, module_namespace: Namespace, database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Plane]:
    """A control plane whose database can be read."""
    folder = tmp_path_factory.mktemp("told")
    account = operator_kubeconfig(cluster, module_namespace, folder)
    with running(folder, cluster, module_namespace, lambda: database, account) as plane:
        yield plane


def secret(cluster: Cluster, namespace: Namespace, name: str, project: str | None) -> None:
    """A Secret with the canary in it, labelled for a project."""
    cluster.kubectl("-n", namespace.name, "create", "secret", "generic", name, f"--from-literal=token={CANARY}")
    if project is not None:
        cluster.kubectl("-n", namespace.name, "label", "secret", name, f"{LABEL}={project}")


async def stored(database: str) -> list[str]:
    """All rows of all tables."""
    connection = await asyncpg.connect(database.replace("+asyncpg", ""))
    try:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return [str(await connection.fetch(f'SELECT * FROM "{table["tablename"]}"')) for table in tables]
    finally:
        await connection.close()


def with_secret(name: str, steps: int = 10, **fields: object) -> dict[str, object]:
    """A job that is given the canary."""
    return rehearsal(steps, resources={"pod": {"secrets": {"HF_TOKEN": f"{name}/token"}}}, **fields)


def test_a_secret_of_the_project_reaches_the_worker_and_shows_nowhere(
    cluster: Cluster, told: Plane, database: str
) -> None:
    secret(cluster, told.namespace, "hub", "default")
    jobs = told.client.jobs
    running_one = jobs.create(with_secret("hub", 10_000)).id
    told.reaches_step(running_one, 2)
    environment = Path(f"/proc/{ranks(running_one)[0]}/environ").read_bytes().split(b"\0")
    assert f"HF_TOKEN={CANARY}".encode() in environment
    jobs.cancel(running_one)
    failing = jobs.create(with_secret("hub", stage={"fault": {"step": 3, "kind": "error"}})).id
    done = jobs.create(with_secret("hub")).id
    told.comes_to(running_one, "cancelled")
    told.comes_to(failing, "failed")
    told.comes_to(done, "succeeded")

    shown = [str(jobs.dry_run(with_secret("hub")))]
    for job in (running_one, failing, done):
        shown += [jobs.get(job).model_dump_json(), str(jobs.explain(job)), str(list(jobs.events(job)))]
        shown += [str(list(jobs.attempts(job))), str(list(jobs.logs(job))), str(list(jobs.metrics(job)))]
    kinds = "jobs,pods,services,networkpolicies,configmaps,events"
    shown.append(cluster.kubectl("-n", told.namespace.name, "get", kinds, "-o", "json"))
    shown += asyncio.run(stored(database))
    files = [*told.namespace.store.rglob("*"), *told.folder.rglob("*")]
    shown += [file.read_bytes().decode(errors="replace") for file in files if file.is_file()]
    assert len(shown) > 50
    assert not [text[:200] for text in shown if CANARY in text]


@pytest.mark.parametrize(("name", "project"), [("unlabelled", None), ("of-others", "others"), ("missing", "")])
def test_a_secret_that_is_not_the_projects_fails_the_job_as_one_that_is_not_there(
    cluster: Cluster, told: Plane, name: str, project: str | None
) -> None:
    if project != "":
        secret(cluster, told.namespace, name, project)
    job = told.client.jobs.create(with_secret(name)).id
    ended = told.comes_to(job, "failed")
    assert (ended.reason, ended.fault) == ("InvalidSpec", "user")
    said = f"namespace {told.namespace.name} has no Secret {name} with the label {LABEL}=default"
    assert said in ended.message
    assert told.pods(job) == []
