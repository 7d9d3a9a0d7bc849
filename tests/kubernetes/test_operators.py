"""Operators that die, freeze and take over from each other: jobs end as if nothing had happened."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.plane import wait_until
from tests.kubernetes.api_request import ApiRequest, asking
from tests.kubernetes.ends import End, end_of
from tests.kubernetes.faulty import FaultyApiServer
from tests.kubernetes.fixtures import AnyCluster
from tests.kubernetes.ground import Ground, changing, named
from tests.kubernetes.ground import ground as stand
from tests.kubernetes.namespace import Namespace
from tests.kubernetes.plane import Plane, Process, rehearsal
from tests.kubernetes.sidelong import Cases

# Three checkpoints, of which two are kept.
STEPS = 14
WRITES = (
    "issue",  # the key that tokens are signed with
    "begin_attempts",
    "create jobs a1",
    "create secrets a1",
    "create services a1",
    "create networkpolicies a1",
    "record_uid a1",
    "move running a1",
    "move finishing a1",
    "settle succeeded a1",
    "mark_pruned",
    "delete jobs a1",
    "mark_cleaned a1",
)
# A pod that is slow to go after its Job is asked to hurry; a wait that takes a while is told; a process that has ended
# by itself when its stop is heard of is not asked to.
SOMETIMES = tuple(f"{what} a{attempt}" for what in ("delete pods", "tell", "stop_attempt") for attempt in (1, 2, 3))
# Seconds until another acts, with the lease that is the default.
HAND_OVER = 15.0
case = Cases()


@pytest.fixture(scope="module")
def ground(
    cluster: AnyCluster,
    module_namespace: Namespace,
    postgres: Callable[[], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Ground]:
    with stand(cluster, module_namespace, postgres, tmp_path_factory.mktemp("operators")) as made:
        yield made


@pytest.fixture(scope="module")
def side_by_side(ground: Ground) -> Iterator[Cases]:
    case.begin(ground)
    yield case
    case.end()


def mortal(process: Process, steps: Path, **how: str) -> None:
    """Makes a process one that dies or freezes."""
    process.command[2] = "tests.kubernetes.mortal"
    process.environment |= {"MORTAL_STEPS": str(steps), **{f"MORTAL_{key.upper()}": each for key, each in how.items()}}


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def lived(plane: Plane, steps: Path, spec: dict[str, Any], dies: str, act: Callable[[Plane, str], None]) -> str:
    """A job's whole life under operators that die; the last one has cleaned up behind it."""
    mortal(plane.operator, steps, dies=dies)
    plane.start()
    job = plane.client.jobs.create(spec).id
    act(plane, job)
    last = plane.client.jobs.get(job).attempt
    wait_until(lambda: f"after mark_cleaned a{last}" in lines(steps), what=f"the last step of {job}")
    plane.operator.kill()
    return job


def succeeds(plane: Plane, job: str) -> None:
    plane.comes_to(job, "succeeded", seconds=300)


def killed_at_each_step(
    ground: Ground,
    name: str,
    dies: str,
    spec: dict[str, Any],
    act: Callable[[Plane, str], None],
    alike: Callable[[End], Any] = lambda end: end,
) -> set[str]:
    """Compares a job whose operators die at each step with one whose operator lives. Gives the steps of its life."""
    with ground.plane(name, LEASE="1") as plane:
        died, undisturbed = plane.folder / "died", plane.folder / "undisturbed"
        job = lived(plane, died, spec, dies, act)
        operator = plane.another_operator()
        mortal(operator, undisturbed)
        operator.start()
        other = plane.client.jobs.create(spec).id
        act(plane, other)
        last = plane.client.jobs.get(other).attempt
        wait_until(lambda: f"after mark_cleaned a{last}" in lines(undisturbed), what=f"the last step of {other}")
        assert alike(end_of(plane, job)) == alike(end_of(plane, other)), plane.story(job)
        ground.is_clear_of(job, other)
        assert ground.births.of(job) == {f"{job}-a{number}": 1 for number in range(1, last + 1)}, "one Job an attempt"
        # By construction somebody died at each kind of step there is, whoever adds one: it is looked at once more.
        missing = {line for line in set(lines(undisturbed)) - set(lines(died)) if not line.endswith(SOMETIMES)}
        assert not missing, f"nobody died at {missing}"
        return {line.partition(" ")[2] for line in lines(undisturbed)}


@case
def each_step_once(ground: Ground) -> None:
    # It outlasts the start of several operators on a busy machine: one of them is to see it run.
    steps = killed_at_each_step(
        ground, "each-step", "after", rehearsal(STEPS, stage={"seconds_per_step": 1.0}), succeeds
    )
    assert set(WRITES) <= steps


def follows(proxy: FaultyApiServer) -> None:
    """Waits until an operator has begun to follow the cluster."""
    proxy.wait_for_watches(3, seconds=60)


class Held:
    """Requests that have come to the API server's door and are not let in yet."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._door = threading.Event()

    def __call__(self, request: ApiRequest) -> None:
        self.names.append(named(request))
        assert self._door.wait(120)

    def let_in(self) -> None:
        self._door.set()


def history(plane: Plane, *jobs: str) -> list[Any]:
    """All that the database tells of jobs that are over."""
    return [(end_of(plane, job), plane.client.jobs.events(job)) for job in jobs]


@case
def two_operators(ground: Ground) -> None:
    """One acts. It is frozen while it creates two Jobs; the other goes on, and is killed; the first goes on."""
    with (
        ground.proxy() as first,
        ground.proxy() as second,
        ground.plane("two", first, WATCH_SILENCE="3") as plane,
    ):
        leader = plane.start().operator
        waiting = plane.another_operator(KUBECONFIG=str(ground.behind(second)))
        follows(first)
        jobs = plane.client.jobs
        waiting.start()
        follows(second)
        # Whoever waits hears nothing of what the leader does: it looks when it takes over.
        with second.silence():
            through = jobs.create(rehearsal(300)).id
            plane.comes_to(through, "running")
            held = Held()
            first.call_before(held, asking("create", "jobs"))
            first.call_before(held, asking("create", "jobs"), nth=2)
            cancelled, going = jobs.create(rehearsal(STEPS)).id, jobs.create(rehearsal(STEPS)).id
            wait_until(lambda: len(held.names) == 2, what="two creates")
            leader.freeze()
            frozen_at = time.monotonic()
            jobs.cancel(cancelled)
            assert second.requests(changing) == [], "only the leader acts"
            done = len(first.requests(changing))
            second.wait_for(asking("create", "jobs"), seconds=30)
            assert time.monotonic() - frozen_at < HAND_OVER
        plane.comes_to(cancelled, "cancelled")
        plane.comes_to(going, "succeeded")
        ground.is_clear_of(going)
        before = history(plane, cancelled, going)

        # What it had sent arrives now, and it wakes.
        held.let_in()
        wait_until(lambda: ground.births.of(cancelled), what="a Job created in a last breath")
        leader.thaw()
        ground.is_clear_of(cancelled)
        assert f"{cancelled}-a1" in {
            named(request) for request in second.requests(changing) if request.verb == "delete"
        }
        assert (cancelled, 1) not in ground.observer.seen, "what no attempt stands for never went live"
        assert (going, 1) in ground.observer.seen

        # Once it leads again, it has done all that it meant to do.
        waiting.kill()
        killed_at = time.monotonic()
        last = jobs.create(rehearsal(6)).id
        first.wait_for(lambda request: request.verb == "create" and named(request) == f"{last}-a1", seconds=30)
        assert time.monotonic() - killed_at < HAND_OVER
        plane.comes_to(last, "succeeded")
        plane.comes_to(through, "succeeded")
        done_since = {named(request) for request in first.requests(changing)[done:]}
        assert not done_since & {f"{cancelled}-a1", f"{going}-a1"}, "it changes nothing on the cluster"
        assert history(plane, cancelled, going) == before, "nor in the database"
        assert ground.births.of(through) == {f"{through}-a1": 1}


def frozen(ground: Ground, name: str, at: str, act: Callable[[Plane, str], None]) -> tuple[list[ApiRequest], str]:
    """An operator is stopped at a step, passed over, and woken. Gives what it changed on the cluster after that."""
    with ground.proxy() as proxy, ground.plane(name, proxy, LEASE="3") as plane:
        steps = plane.folder / "steps"
        mortal(plane.operator, steps, freezes=at)
        plane.start()
        follows(proxy)
        # It is there at once: an operator that slept for long has no open connection left to act through.
        other = plane.another_operator(KUBECONFIG=str(ground.account)).start()
        wait_until(lambda: "operator runs" in other.log.read_text(), what="a second operator")
        job = plane.client.jobs.create(rehearsal(STEPS)).id
        wait_until(lambda: at in lines(steps), what=f"an operator that stops {at}")
        done = len(proxy.requests(changing))
        act(plane, job)
        ground.is_clear_of(job)
        before = history(plane, job)
        plane.operator.thaw()
        # Once it leads again, it has done all that it meant to do.
        other.kill()
        last = plane.client.jobs.create(rehearsal(6)).id
        plane.comes_to(last, "succeeded")
        assert history(plane, job) == before
        return [request for request in proxy.requests(changing)[done:] if job in named(request)], job


def is_cancelled(plane: Plane, job: str) -> None:
    plane.client.jobs.cancel(job)
    plane.comes_to(job, "cancelled")


@case
def frozen_before_it_creates(ground: Ground) -> None:
    # Between its last look at the lease and the wire: nothing but the fence is in the way.
    changed, job = frozen(ground, "frozen-before", "before create jobs a1", is_cancelled)
    assert (changed, ground.births.of(job)) == ([], {})


@case
def frozen_after_it_created(ground: Ground) -> None:
    changed, job = frozen(ground, "frozen-after", "after create jobs a1", succeeds)
    assert (changed, ground.births.of(job)) == ([], {f"{job}-a1": 1})


@case
def frozen_in_a_transaction(ground: Ground) -> None:
    changed, job = frozen(ground, "frozen-within", "before record_uid a1", succeeds)
    assert (changed, ground.births.of(job)) == ([], {f"{job}-a1": 1})


def test_an_operator_killed_after_each_step_changes_nothing(side_by_side: Cases) -> None:
    side_by_side.result("each_step_once")


def test_of_two_operators_one_acts_and_one_that_was_frozen_changes_nothing(side_by_side: Cases) -> None:
    side_by_side.result("two_operators")


@pytest.mark.parametrize("name", [name for name in case.names if name.startswith("frozen")])
def test_whatever_it_was_about_to_do_an_operator_that_wakes_does_nothing(side_by_side: Cases, name: str) -> None:
    side_by_side.result(name)


def runs(plane: Plane, job: str) -> None:
    """Waits until a job runs and its operator knows, which may have died of it."""
    plane.comes_to(job, "running")
    plane.reaches_step(job, 5)


def is_paused_and_goes_on(plane: Plane, job: str) -> None:
    runs(plane, job)
    plane.client.jobs.pause(job)
    plane.comes_to(job, "paused", seconds=300)
    plane.client.jobs.resume(job)
    succeeds(plane, job)


def is_cancelled_while_it_runs(plane: Plane, job: str) -> None:
    runs(plane, job)
    is_cancelled(plane, job)


def but_for_where_it_was_stopped(end: End) -> End:
    """Nobody says after which step a wish is heard."""
    attempts = tuple((number, reason, code, None) for number, reason, code, _ in end.attempts)
    return replace(end, attempts=attempts, checkpoints=end.checkpoints[-1:])


def but_for_how_far_it_came(end: End) -> End:
    return replace(but_for_where_it_was_stopped(end), losses=(), checkpoints=())


# Steps that take longer than operators who die before and after each of theirs need to come to see them.
LONG = 200


@pytest.mark.soak
def test_operators_killed_before_and_after_each_step_of_two_pods_that_fail_first(ground: Ground) -> None:
    stage = {"fault": {"step": 6, "kind": "error", "attempt": 1}}
    spec = rehearsal(LONG, stage=stage, resources={"nodes": 2})
    steps = killed_at_each_step(ground, "fails-first", "both", spec, succeeds)
    assert {"settle queued a1", "create jobs a2", "settle succeeded a2", "mark_cleaned a2"} <= steps


@pytest.mark.soak
def test_operators_killed_before_and_after_each_step_of_two_pods_that_are_paused(ground: Ground) -> None:
    spec = rehearsal(LONG, resources={"nodes": 2})
    alike = but_for_where_it_was_stopped
    steps = killed_at_each_step(ground, "paused", "both", spec, is_paused_and_goes_on, alike)
    assert {"stop_attempt a1", "settle paused a1", "move queued a1", "settle succeeded a2"} <= steps


@pytest.mark.soak
def test_operators_killed_before_and_after_each_step_of_two_pods_that_are_cancelled(ground: Ground) -> None:
    spec = rehearsal(10_000, resources={"nodes": 2})
    alike = but_for_how_far_it_came
    steps = killed_at_each_step(ground, "cancelled", "both", spec, is_cancelled_while_it_runs, alike)
    assert {"stop_attempt a1", "settle cancelled a1", "mark_cleaned a1"} <= steps
