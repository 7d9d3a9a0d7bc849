"""What goes wrong between the operator and the API server changes no job's end, and makes no attempt twice."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from tests.e2e.plane import wait_until
from tests.kubernetes.api_request import ApiRequest, Predicate, asking
from tests.kubernetes.ends import End, end_of
from tests.kubernetes.faulty import FaultyApiServer
from tests.kubernetes.fixtures import AnyCluster
from tests.kubernetes.ground import Ground, named
from tests.kubernetes.ground import ground as stand
from tests.kubernetes.namespace import Namespace
from tests.kubernetes.plane import Plane, rehearsal
from tests.kubernetes.sidelong import Cases

STEPS = 14
# Seconds after which a watch that says nothing is begun again, and after which a call that hangs is given up.
SILENCE, LEASE = 3, 3
case = Cases()


@dataclass
class Faulty:
    """A control plane whose operator asks a proxy."""

    ground: Ground
    plane: Plane
    proxy: FaultyApiServer

    def begin(self, steps: int = STEPS, **fields: Any) -> str:
        """A job that has not started yet, perhaps."""
        return self.plane.client.jobs.create(rehearsal(steps, **fields)).id

    def trained(self, job: str, steps: int = STEPS) -> None:
        """Waits until a job has made all its steps, whether its operator knows or not."""
        self.plane.reaches_step(job, steps)

    def ends_undisturbed(self, job: str, steps: int = STEPS) -> End:
        """Waits for the end of a job, which is as if nothing had happened."""
        self.plane.comes_to(job, "succeeded")
        end = end_of(self.plane, job)
        every = self.plane.client.jobs.metrics(job, name="train/loss", superseded=True)
        undisturbed = ("succeeded", "Finished", ((1, None, 0, None),))
        assert (end.phase, end.reason, end.attempts) == undisturbed, self.plane.story(job)
        assert [step for step, _ in end.losses] == list(range(1, steps + 1))
        assert len(every) == steps, "no step was made twice"
        assert self.ground.births.of(job) == {f"{job}-a1": 1}, "each attempt has one Job, ever"
        self.ground.is_clear_of(job)
        return end


@pytest.fixture(scope="module")
def faulty(
    cluster: AnyCluster,
    module_namespace: Namespace,
    postgres: Callable[[], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Faulty]:
    folder = tmp_path_factory.mktemp("faults")
    with stand(cluster, module_namespace, postgres, folder) as ground, ground.proxy() as proxy:
        settings = {"LEASE": str(LEASE), "WATCH_SILENCE": str(SILENCE)}
        with ground.plane("faulty", proxy, **settings) as plane:
            made = Faulty(ground, plane.start(), proxy)
            proxy.wait_for_watches(3, seconds=60)
            yield made


@pytest.fixture(scope="module")
def side_by_side(faulty: Faulty) -> Iterator[Cases]:
    case.begin(faulty, at_once=len(case.names))
    yield case
    case.end()


@pytest.fixture(scope="module")
def undisturbed(faulty: Faulty) -> End:
    """What a job comes to of which no call is disturbed."""
    return faulty.ends_undisturbed(faulty.begin())


Fault = Callable[[FaultyApiServer, Predicate], None]
FAULTS: dict[str, Fault] = {
    "a_reply_that_is_lost": lambda proxy, what: proxy.lose_reply(what),
    "a_connection_that_is_cut": lambda proxy, what: proxy.drop(what),
    # An account that has just expired, and a server that has just started and does not know all roles yet.
    "401": lambda proxy, what: proxy.answer(401, what, reason="Unauthorized"),
    "403": lambda proxy, what: proxy.answer(403, what),
    "a_page_of_somebody_in_between": lambda proxy, what: proxy.answer_with_a_page(403, what),
    "409": lambda proxy, what: proxy.answer(409, what),
    "429": lambda proxy, what: proxy.answer(429, what, retry_after=1),
    "500": lambda proxy, what: proxy.answer(500, what),
    "504": lambda proxy, what: proxy.answer(504, what),
    "no_answer": lambda proxy, what: proxy.hang(what),
}


def creating(kind: str, name: str) -> Predicate:
    """Matches the creation of one object: its name is in no path."""
    return lambda request: asking("create", kind)(request) and named(request) == name


def disturbed(fault: Fault, mark: str, faulty: Faulty) -> End:
    """A job of which the first of each call that changes something, or looks, goes wrong in one way."""
    proxy, met = faulty.proxy, []

    def its_job(request: ApiRequest) -> bool:
        return asking("create", "jobs")(request) and f'"{mark}"'.encode() in request.body

    def the_others(request: ApiRequest) -> None:
        name = named(request)
        for kind in ("secrets", "services", "networkpolicies"):
            fault(proxy, creating(kind, name))
        fault(proxy, asking("get", "jobs", name))
        fault(proxy, asking("delete", "jobs", name))
        met.append(name)

    proxy.call_before(the_others, its_job)
    fault(proxy, its_job)
    job = faulty.begin(resources={"cpu": mark})
    end = faulty.ends_undisturbed(job)
    assert met == [f"{job}-a1"]
    for kind in ("jobs", "secrets", "services", "networkpolicies"):
        # A Job that the watch has told of is not asked for a second time.
        known = kind == "jobs" and fault is FAULTS["a_reply_that_is_lost"]
        assert proxy.count(creating(kind, met[0])) >= (1 if known else 2), f"{kind} were not tried again"
    assert proxy.count(asking("delete", "jobs", met[0])) >= 2 or fault is FAULTS["a_reply_that_is_lost"]
    return end


for _number, (_name, _fault) in enumerate(FAULTS.items()):
    # A job is known by what it asks for before it has a name.
    case.add(_name, partial(disturbed, _fault, f"{101 + _number}m"))


@case
def calls_that_take_long(faulty: Faulty) -> None:
    """An attempt's objects take longer than a lease, each of them less."""
    slow = "321m"

    def waits(_: ApiRequest) -> None:
        threading.Event().wait(LEASE * 0.6)

    def its_job(request: ApiRequest) -> bool:
        return asking("create", "jobs")(request) and f'"{slow}"'.encode() in request.body

    def the_others(request: ApiRequest) -> None:
        for kind in ("secrets", "services", "networkpolicies"):
            faulty.proxy.call_before(waits, creating(kind, named(request)))
        waits(request)

    faulty.proxy.call_before(the_others, its_job)
    job = faulty.begin(resources={"cpu": slow})
    faulty.ends_undisturbed(job)
    assert faulty.proxy.count(its_job) == 1, "it was not given up"


@case
def watches_that_break_off(faulty: Faulty) -> None:
    """Cut, told that they are too old, and gone silent, in turn: each time something happens that must be noticed."""
    proxy, jobs = faulty.proxy, [faulty.begin()]
    faulty.plane.comes_to(jobs[0], "running")
    assert proxy.cut_watches() > 0
    faulty.ends_undisturbed(jobs[0])

    jobs.append(faulty.begin())
    faulty.plane.comes_to(jobs[1], "running")
    version = too_old(faulty)

    def stale(request: ApiRequest) -> bool:
        return request.verb == "watch" and int(request.query["resourceVersion"]) <= version

    # A server that has forgotten a version does not remember it when it is asked again.
    proxy.answer(410, stale, times=1000, reason="Expired")
    assert proxy.expire_watches() > 0
    faulty.ends_undisturbed(jobs[1])

    jobs.append(faulty.begin())
    faulty.plane.comes_to(jobs[2], "running")
    with proxy.silence():
        jobs.append(faulty.begin())
        for job in jobs[2:]:
            faulty.trained(job)
            wait_until(partial(is_complete, faulty, job), what=f"a complete Job of {job}")
        assert [faulty.plane.client.jobs.get(job).phase for job in jobs[2:]] == ["running", "running"]
    for job in jobs[2:]:
        faulty.ends_undisturbed(job)


def too_old(faulty: Faulty) -> int:
    """The newest version of all objects; there are newer ones when this returns."""
    http, path = faulty.ground.cluster.http, f"/api/v1/namespaces/{faulty.ground.namespace.name}/configmaps"
    version = int(http.get(path).raise_for_status().json()["metadata"]["resourceVersion"])
    http.post(path, json={"metadata": {"generateName": "newer-"}}).raise_for_status()
    return version


def is_complete(faulty: Faulty, job: str) -> bool:
    """Whether the API server itself says that a job's Job is over."""
    path = f"/apis/batch/v1/namespaces/{faulty.ground.namespace.name}/jobs/{job}-a1"
    conditions = faulty.ground.cluster.http.get(path).json().get("status", {}).get("conditions", [])
    return any(condition["type"] == "Complete" for condition in conditions)


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_job_ends_as_undisturbed_when_its_calls_meet(side_by_side: Cases, undisturbed: End, name: str) -> None:
    assert side_by_side.result(name) == undisturbed


def test_watches_that_are_cut_or_too_old_or_silent_are_begun_again_and_miss_nothing(side_by_side: Cases) -> None:
    side_by_side.result("watches_that_break_off")


def test_an_attempt_whose_objects_take_longer_than_a_lease_is_not_given_up(side_by_side: Cases) -> None:
    side_by_side.result("calls_that_take_long")


def nobody_answers(faulty: Faulty, away: AbstractContextManager[None], seconds: float) -> None:
    """One job runs through, one ends meanwhile, one is wanted meanwhile."""
    jobs, steps = faulty.plane.client.jobs, int(10 * seconds) + 60
    through, ending = faulty.begin(steps), faulty.begin(30)
    for job in (through, ending):
        faulty.plane.comes_to(job, "running")
    with away:
        began = time.monotonic()
        waiting = faulty.begin()
        faulty.trained(ending, 30)
        # The length of the fault itself: nothing is waited for.
        threading.Event().wait(max(0.0, seconds - (time.monotonic() - began)))
        assert jobs.get(waiting).phase in ("queued", "starting")
        assert [jobs.get(job).phase for job in (through, ending)] == ["running", "running"]
        assert faulty.ground.births.of(waiting) == {}
    faulty.ends_undisturbed(waiting)
    faulty.ends_undisturbed(ending, 30)
    faulty.ends_undisturbed(through, steps)


@contextmanager
def killed(cluster: AnyCluster) -> Iterator[None]:
    """The API server's own process, killed and started again on its data."""
    cluster.stop_api_server(kill=True)
    try:
        yield
    finally:
        cluster.start_api_server()


def test_while_the_api_server_refuses_connections_nothing_is_lost_and_nothing_is_ended(faulty: Faulty) -> None:
    case.end()
    nobody_answers(faulty, faulty.proxy.refusing(), 6)


def test_while_the_api_server_is_dead_nothing_is_lost_and_nothing_is_ended(faulty: Faulty) -> None:
    case.end()
    nobody_answers(faulty, killed(faulty.ground.cluster), 5)


def test_a_pod_that_was_heard_of_only_while_it_waited_is_not_taken_for_one_that_never_began(faulty: Faulty) -> None:
    case.end()
    deaf, of_pods = threading.Event(), asking("watch", "pods")
    kubectl, label = faulty.ground.cluster.kubectl, f"later-{faulty.ground.namespace.name}"
    job = faulty.begin(resources={"pod": {"node_selector": {label: "yes"}}})
    wait_until(lambda: "available" in faulty.plane.client.jobs.get(job).message, what="the scheduler's words")
    try:
        deaf.set()
        faulty.proxy.answer(500, lambda request: deaf.is_set() and of_pods(request), times=1000)
        faulty.proxy.cut_watches(of_pods)
        kubectl("label", "nodes", "--all", f"{label}=yes")
        faulty.trained(job)
        faulty.plane.comes_to(job, "finishing")
    finally:
        deaf.clear()
        kubectl("label", "nodes", "--all", f"{label}-")
    faulty.ends_undisturbed(job)


@pytest.mark.soak
@pytest.mark.parametrize("how", ["refusing", "killed"])
def test_an_api_server_that_is_away_for_a_minute_loses_nothing(faulty: Faulty, how: str) -> None:
    case.end()
    away = faulty.proxy.refusing() if how == "refusing" else killed(faulty.ground.cluster)
    nobody_answers(faulty, away, 60)
