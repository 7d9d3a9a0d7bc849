"""The control plane's image, as a cluster runs it: nobody's root, a read-only file system, signals to process 1."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from api.main import VERSION
from tests.images.pods import Pod, pod
from tests.kubernetes.fixtures import AnyCluster
from tests.kubernetes.namespace import USER, Namespace

ANYBODY = 1_000_770_000
"""A user that a cluster chooses, with the group 0, as OpenShift does."""
USERS = {"its-own": {}, "any": {"runAsUser": ANYBODY, "runAsGroup": 0}}


@pytest.fixture(scope="module")
def pods(cluster: AnyCluster, module_namespace: Namespace, api_image: str) -> Iterator[dict[str, Pod]]:
    """A pod for each kind of user, ready."""
    with ExitStack() as ends:
        made = {
            name: ends.enter_context(pod(cluster, module_namespace, api_image, name, **user))
            for name, user in USERS.items()
        }
        for each in made.values():
            each.is_ready()
        yield made


@pytest.mark.parametrize("whose", USERS)
def test_under_the_restricted_level_it_migrates_and_serves(pods: dict[str, Pod], whose: str) -> None:
    this = pods[whose]
    (migrations,) = this.status()["initContainerStatuses"]
    assert migrations["state"]["terminated"]["exitCode"] == 0
    assert (this.get("/readyz"), this.get("/livez")) == (200, 200)
    # Whoever reaches a pod is on another machine.
    assert this.get("/v1/jobs") == 401


def test_it_runs_as_the_users_that_it_promises(pods: dict[str, Pod]) -> None:
    assert pods["its-own"].run("id", "-u").strip() == str(USER)
    assert pods["its-own"].run("id", "-g").strip() == str(USER)
    assert pods["any"].run("id", "-u").strip() == str(ANYBODY)


@pytest.mark.parametrize("whose", USERS)
def test_a_first_key_is_made_in_it_and_its_command_line_uses_that(pods: dict[str, Pod], whose: str) -> None:
    key = pods[whose].run("python", "-m", "api", "create-key", "--admin").strip()
    server = "RLHF_SERVER=http://127.0.0.1:8000"
    assert json.loads(pods[whose].run("env", f"RLHF_API_KEY={key}", server, "rlhf", "list", "--json")) == []


def test_it_tells_its_release(pods: dict[str, Pod]) -> None:
    assert pods["its-own"].run("python", "-m", "api", "--version").strip() == f"rlhf-operator {VERSION}"


def test_asked_to_stop_it_ends_well_within_its_grace(
    cluster: AnyCluster, module_namespace: Namespace, api_image: str
) -> None:
    with pod(cluster, module_namespace, api_image, "stopped") as this:
        this.is_ready()
        ended = this.ends()
    # Killed at the end of the grace it would be 137.
    assert (ended["exitCode"], ended["reason"]) == (0, "Completed")
