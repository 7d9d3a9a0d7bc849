"""The proxy that the tests of faults trust: before a real API server, it breaks what it was told to, and only that."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.credentials import Credentials
from tests.kubernetes.api_request import asking, parse
from tests.kubernetes.faulty import FaultyApiServer
from tests.kubernetes.fixtures import AnyCluster
from tests.kubernetes.namespace import Namespace

MAPS = asking("create", "configmaps")
CUT = (httpx.ReadError, httpx.RemoteProtocolError)  # and no time-out


@pytest.fixture
def client(faulty: FaultyApiServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=faulty.url, timeout=30) as made:
        yield made


def maps(namespace: Namespace) -> str:
    return f"/api/v1/namespaces/{namespace.name}/configmaps"


def named(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}}


def names(cluster: AnyCluster, namespace: Namespace) -> set[str]:
    """What the real API server has, but for the one that it makes itself."""
    items = cluster.http.get(maps(namespace)).json()["items"]
    return {item["metadata"]["name"] for item in items} - {"kube-root-ca.crt"}


@contextmanager
def watch(client: httpx.Client, namespace: Namespace) -> Iterator[Iterator[str]]:
    with client.stream("GET", maps(namespace), params={"watch": "1"}, timeout=30) as response:
        assert response.status_code == 200
        yield response.iter_lines()


def next_named(lines: Iterator[str], name: str) -> None:
    """Read events until one of that name; the watch's own end is an error."""
    for line in lines:
        if json.loads(line)["object"]["metadata"]["name"] == name:
            return
    raise AssertionError(f"the watch ended before {name}")


@pytest.mark.parametrize(
    ("method", "path", "query", "verb", "resource", "namespace", "name"),
    [
        ("GET", "/api/v1/namespaces/a/pods", {}, "list", "pods", "a", ""),
        ("GET", "/api/v1/namespaces/a/pods", {"watch": "true"}, "watch", "pods", "a", ""),
        ("GET", "/api/v1/namespaces/a/pods/p/log", {"follow": "true"}, "get", "pods/log", "a", "p"),
        ("POST", "/apis/batch/v1/namespaces/a/jobs", {}, "create", "jobs", "a", ""),
        ("PATCH", "/apis/batch/v1/namespaces/a/jobs/j/status", {}, "patch", "jobs/status", "a", "j"),
        ("DELETE", "/apis/batch/v1/namespaces/a/jobs/j", {}, "delete", "jobs", "a", "j"),
        ("DELETE", "/apis/batch/v1/namespaces/a/jobs", {}, "deletecollection", "jobs", "a", ""),
        ("GET", "/apis/batch/v1/jobs", {}, "list", "jobs", "", ""),
        ("GET", "/api/v1/namespaces/a", {}, "get", "namespaces", "a", "a"),
        ("GET", "/api/v1/namespaces", {}, "list", "namespaces", "", ""),
        ("GET", "/version", {}, "get", "", "", ""),
    ],
)
def test_a_request_is_named_as_in_a_role(
    method: str, path: str, query: dict[str, str], verb: str, resource: str, namespace: str, name: str
) -> None:
    request = parse(method, path, query)
    assert (request.verb, request.resource, request.namespace, request.name) == (verb, resource, namespace, name)


def test_kubectl_works_through_it_and_every_request_is_recorded(
    faulty: FaultyApiServer, cluster: AnyCluster, namespace: Namespace, tmp_path: Path
) -> None:
    config = faulty.write_kubeconfig(tmp_path / "kubeconfig")
    document = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", **named("through")})
    cluster.kubectl("create", "-n", namespace.name, "-f", "-", input=document, kubeconfig=config)
    cluster.kubectl("delete", "configmap", "through", "-n", namespace.name, kubeconfig=config)
    assert names(cluster, namespace) == set()
    assert [r.namespace for r in faulty.requests(MAPS)] == [namespace.name]
    assert faulty.count(asking("delete", "configmaps", "through")) == 1


def test_who_comes_is_the_user_of_the_given_token(cluster: AnyCluster, namespace: Namespace) -> None:
    token = cluster.kubectl("create", "token", "default", "-n", namespace.name).strip()
    with FaultyApiServer(Credentials.of(cluster.kubeconfig, token=token)) as proxy:
        refused = httpx.get(f"{proxy.url}{maps(namespace)}")
    assert refused.status_code == 403
    assert f"system:serviceaccount:{namespace.name}:default" in refused.json()["message"]


@pytest.mark.parametrize("status", [409, 429, 500])
def test_the_next_requests_that_match_get_an_error_and_do_nothing(
    faulty: FaultyApiServer, client: httpx.Client, cluster: AnyCluster, namespace: Namespace, status: int
) -> None:
    faulty.answer(status, MAPS, times=2, retry_after=3)
    assert client.get(maps(namespace)).status_code == 200
    for _ in range(2):
        failed = client.post(maps(namespace), json=named("one"))
        assert (failed.status_code, failed.json()["code"], failed.headers["retry-after"]) == (status, status, "3")
    assert names(cluster, namespace) == set()
    assert client.post(maps(namespace), json=named("one")).status_code == 201


def test_a_request_that_hangs_is_never_answered_nor_done(
    faulty: FaultyApiServer, client: httpx.Client, cluster: AnyCluster, namespace: Namespace
) -> None:
    faulty.hang(MAPS)
    with pytest.raises(httpx.ReadTimeout):
        client.post(maps(namespace), json=named("one"), timeout=0.5)
    assert names(cluster, namespace) == set()
    assert client.post(maps(namespace), json=named("one")).status_code == 201


def test_a_dropped_request_is_not_done_and_one_with_a_lost_reply_is(
    faulty: FaultyApiServer, client: httpx.Client, cluster: AnyCluster, namespace: Namespace
) -> None:
    faulty.drop(MAPS)
    with pytest.raises(CUT):
        client.post(maps(namespace), json=named("dropped"))
    faulty.lose_reply(MAPS)
    with pytest.raises(CUT):
        client.post(maps(namespace), json=named("done"))
    assert names(cluster, namespace) == {"done"}
    assert client.post(maps(namespace), json=named("done")).status_code == 409


def test_a_watch_brings_each_event_as_it_happens(
    faulty: FaultyApiServer, client: httpx.Client, cluster: AnyCluster, namespace: Namespace
) -> None:
    with watch(client, namespace) as lines:
        for name in ("one", "two"):
            cluster.http.post(maps(namespace), json=named(name)).raise_for_status()
            next_named(lines, name)


def test_cut_watches_end_as_a_broken_connection_does(
    faulty: FaultyApiServer, client: httpx.Client, namespace: Namespace
) -> None:
    with watch(client, namespace) as lines:
        next_named(lines, "kube-root-ca.crt")
        faulty.wait_for_watches(1)
        assert faulty.cut_watches() == 1
        with pytest.raises(CUT):
            next_named(lines, "never")
    faulty.wait_for_watches(0)


def test_expired_watches_end_with_an_error_event_of_status_410(
    faulty: FaultyApiServer, client: httpx.Client, namespace: Namespace
) -> None:
    with watch(client, namespace) as lines:
        next_named(lines, "kube-root-ca.crt")
        assert faulty.expire_watches(asking("watch", "configmaps")) == 1
        (last,) = lines
    assert (json.loads(last)["type"], json.loads(last)["object"]["code"]) == ("ERROR", 410)


def test_silent_watches_stay_connected_and_say_nothing_and_later_ones_speak(
    faulty: FaultyApiServer, client: httpx.Client, cluster: AnyCluster, namespace: Namespace
) -> None:
    with client.stream("GET", maps(namespace), params={"watch": "1"}, timeout=1) as response:
        lines = response.iter_lines()
        next_named(lines, "kube-root-ca.crt")
        with faulty.silence():
            cluster.http.post(maps(namespace), json=named("unheard")).raise_for_status()
            with pytest.raises(httpx.ReadTimeout):
                next(lines)
    with watch(client, namespace) as spoken:
        next_named(spoken, "unheard")


def test_while_it_refuses_nothing_listens_and_afterwards_it_does_at_the_same_place(
    faulty: FaultyApiServer, client: httpx.Client, namespace: Namespace
) -> None:
    with watch(client, namespace) as lines:
        next_named(lines, "kube-root-ca.crt")
        with faulty.refusing():
            with pytest.raises(httpx.ConnectError):
                client.get(maps(namespace))
            with pytest.raises(CUT):
                next_named(lines, "never")
    assert client.get(maps(namespace)).status_code == 200


def test_hooks_are_called_before_and_after_the_nth_request_is_done(
    faulty: FaultyApiServer, client: httpx.Client, cluster: AnyCluster, namespace: Namespace
) -> None:
    seen = {}
    faulty.call_before(lambda _: seen.update(before=names(cluster, namespace)), MAPS, nth=2)
    faulty.call_after(lambda _: seen.update(after=names(cluster, namespace)), MAPS, nth=2)
    for name in ("one", "two", "three"):
        client.post(maps(namespace), json=named(name)).raise_for_status()
    assert seen == {"before": {"one"}, "after": {"one", "two"}}


def test_a_request_is_done_even_if_a_hook_before_it_ends_its_client(
    faulty: FaultyApiServer, cluster: AnyCluster, namespace: Namespace
) -> None:
    gone, done = threading.Event(), threading.Event()
    faulty.call_before(lambda _: gone.wait(30) and None, MAPS)
    faulty.call_after(lambda _: done.set(), MAPS)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{faulty.url}{maps(namespace)}", json=named("one"), timeout=0.3)
    gone.set()
    assert done.wait(30)
    assert names(cluster, namespace) == {"one"}


def test_a_test_can_wait_for_a_request(faulty: FaultyApiServer, client: httpx.Client, namespace: Namespace) -> None:
    with pytest.raises(TimeoutError):
        faulty.wait_for(MAPS, seconds=0.1)
    asking_thread = threading.Thread(target=lambda: client.post(maps(namespace), json=named("one")))
    asking_thread.start()
    faulty.wait_for(MAPS)
    asking_thread.join()
