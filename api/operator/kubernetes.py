"""The cluster that is a Kubernetes: an attempt is an Indexed Job with a Secret, a Service and a NetworkPolicy.

What is there is known from two watches, for all attempts together; calls are made only to change something. Nothing is
adopted, changed or removed that does not bear this installation's labels.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from api.domain.job import Reason
from api.domain.observation import Observation
from api.operator import labels, manifest, pods, podspec
from api.operator.cluster import CannotStart, ClusterError, Held, LogEnd, placed
from api.operator.collect import log_ends
from api.operator.first import First
from api.operator.informer import SILENCE, Informer
from api.operator.kube_api import (
    EVENTS,
    JOBS,
    NETWORK_POLICIES,
    PODS,
    SECRETS,
    SERVICES,
    WORKLOADS,
    ApiError,
    Json,
    KubeApi,
    Resource,
)
from api.operator.kueue import waiting, workload_of
from api.operator.pods import warned_of
from api.operator.site import Site
from api.stores import Store, live_logs
from worker.contract.order import Input, Meeting, Order
from worker.contract.spec import JobSpec

# Kubernetes takes no more of a container's last words (https://kubernetes.io/docs/tasks/debug/debug-application/).
_LAST_WORDS = 4096
# A server that has just started may refuse what it allows a moment later: so long a refusal is not final, in seconds.
_PATIENCE = 10.0
# A pod that is asked again to end, and not more than this much sooner, is left alone. In seconds.
_SOONER = 2.0
# What Kueue takes to look at a new Job.
_TAKES_NOTICE = timedelta(seconds=5)


class KubernetesCluster:
    """One namespace, in which this installation's attempts run. Use `open`."""

    def __init__(self, api: KubeApi, site: Site, store: Store, *, silence: float = SILENCE) -> None:
        self._api, self._site, self._store = api, site, store

        def follow(kind: Resource, query: dict[str, str], key: Callable[[Json], str | None], **more: bool) -> Informer:
            return Informer(api, kind, query, key=key, changed=self._hint, silence=silence, **more)

        ours = {"labelSelector": labels.selector(site)}
        self._jobs = follow(JOBS, ours, labels.attempt_of)
        self._pods = follow(PODS, ours, labels.attempt_of)
        # What a controller could not do is told in events alone: a pod that a quota refuses leaves no other trace.
        self._warnings = follow(EVENTS, {"fieldSelector": "type=Warning"}, warned_of, bookmarks=False)
        # Followed once there is a Job that waits in a queue: elsewhere there may be no such kind of object.
        self._workloads = follow(WORKLOADS, {}, workload_of)
        self._first = First()
        self._doubtful: set[str] = set()
        """Attempts whose Job may have been created by a call that nobody answered."""
        self._deleted: set[str] = set()
        """Attempts whose Job was deleted from here, so that Kubernetes deletes what it owned."""
        self._looked: set[tuple[str, bool]] = set()
        """Attempts that were over, or that live and had lost their Job or its place, asked for once more."""
        self._refused: dict[str, float] = {}
        """When the API server first refused an attempt, by the monotonic clock."""
        self._tasks: dict[Informer, asyncio.Task[None]] = {}
        self._ended: Callable[[str], None] = lambda name: None

    @classmethod
    @asynccontextmanager
    async def open(cls, api: KubeApi, site: Site, store: Store, **given: Any) -> AsyncIterator["KubernetesCluster"]:
        """A cluster that is followed until the end of the block."""
        this = cls(api, site, store, **given)
        for informer in (this._jobs, this._pods, this._warnings):
            this._follow(informer)
        try:
            yield this
        finally:
            for task in this._tasks.values():
                task.cancel()
            await asyncio.gather(*this._tasks.values(), return_exceptions=True)

    def watch(self, ended: Callable[[str], None]) -> None:
        """Has `ended` called with the name of an attempt of which something changed."""
        self._ended = ended

    @property
    def trouble(self) -> str | None:
        """Why Jobs or pods are not followed at the moment, in the API server's words; None: they are."""
        return self._jobs.trouble or self._pods.trouble or self._warnings.trouble

    async def look_anew(self) -> None:
        """Lists everything: what another operator created before is known afterwards. Raises ClusterError."""
        await asyncio.gather(self._jobs.list(), self._pods.list())

    def doubt(self) -> None:
        """Takes nothing for known until it was listed again."""
        for informer in (self._jobs, self._pods):
            informer.doubt()
            self._tasks[informer].cancel()
            self._follow(informer)

    def order(self, name: str, job: str, attempt: int, spec: JobSpec, inputs: Mapping[str, Input]) -> Order:
        """The attempt's order, with its files as pods see them."""
        site = self._site
        meeting = Meeting(
            host=f"{name}-0.{name}.{site.namespace}.svc", port=podspec.LAUNCHER_PORT, ranks_port=podspec.RANKS_PORT
        )
        return Order(
            job=job,
            attempt=attempt,
            spec=spec,
            inputs=placed(inputs, site.store_path if site.bucket is None else site.store_url),
            store=site.store_url,
            scratch=None if site.bucket is None else site.store_path,
            control_url_file=f"{podspec.MOUNT}/control-url",
            token_file=f"{podspec.MOUNT}/token",
            termination_file=podspec.TERMINATION_FILE,
            termination_limit=_LAST_WORDS,
            log_folder=f"{site.store_path}/jobs/{job}/a{attempt}/log",
            echo=True,
            meeting=meeting if spec.resources.nodes > 1 else None,
        )

    async def ensure(self, name: str, order: Order, token: str, image: str | None = None, project: str = "") -> str:
        """Creates the attempt's objects, those that are missing. Raises CannotStart, Held, ClusterError."""
        try:
            wanted = manifest.objects(name, order, token, self._site, image)
        except manifest.CannotRender as error:
            raise CannotStart(Reason.INVALID_SPEC, str(error)) from None
        with self._refusals(name):
            await self._require_secrets(order.spec, project)
            # Schedulers and queues go by the order in which Jobs come: theirs is not held up by what belongs to others.
            with self._first.urgent():
                job = await self._create_job(name, wanted.job)
            uid = str(job["metadata"]["uid"])
            owned = manifest.owned_by(wanted, uid)
            await self._first.after()
            await asyncio.gather(
                self._create_owned(SERVICES, owned.service, uid),
                self._create_owned(NETWORK_POLICIES, owned.network_policy, uid),
            )
            # No pod starts without its Secret: so none ever runs without its policy.
            await self._create_owned(SECRETS, owned.secret, uid)
        return uid

    async def observe(self, name: str, uid: str | None = None) -> Observation:
        """What the Job and the pods say, as far as they were heard of. Raises ClusterError before the first list."""
        if not (self._jobs.whole.is_set() and self._pods.whole.is_set()):
            raise ClusterError(f"the cluster has not answered yet: {self._jobs.trouble or self._pods.trouble}")
        if uid is None and name in self._doubtful:
            await self._look_at(name)
        seen = self._seen(name, uid)
        if (name, seen.alive) in self._looked or not seen.exists:
            return seen
        # Two watches tell of Jobs and of pods, each in its own time: that something is gone is asked for, once.
        if seen.orphaned:
            await self._look_at(name)
        if seen.orphaned or (not seen.alive and self._lacks_pods(name, uid)):
            await self._pods.list()
            self._looked.add((name, seen.alive))
            seen = self._seen(name, uid)
        return seen

    def _lacks_pods(self, name: str, uid: str | None) -> bool:
        """Whether fewer pods are known than the attempt's Job makes."""
        job = self._job(name, uid)
        return len(self._pods.of(name)) < (int(job["spec"].get("completions") or 1) if job is not None else 1)

    def _seen(self, name: str, uid: str | None) -> Observation:
        job = self._job(name, uid)
        told = {item["involvedObject"]["uid"]: item for item in self._warnings.of(name)}
        return pods.observe(uid, job, self._pods.of(name), told, self._queue_says(job))

    async def stop(self, name: str, grace: float) -> None:
        """Has the pods end within `grace` seconds. A Job without any that began is deleted instead."""
        job, found = self._job(name), self._pods.of(name)
        if job is not None and "deletionTimestamp" not in job["metadata"] and not any(map(_began, found)):
            # Pods may have begun, and even ended, since the watches told of them.
            of_it = {"labelSelector": labels.selector_of(self._site, name)}
            found = (await self._api.list(PODS, of_it)).get("items") or []
            job = await self._look_at(name)
            ending = job is None or pods.over(job) or "deletionTimestamp" in job["metadata"]
            if job is not None and not ending and not any(map(_began, found)):
                # One that waits in a queue is gone at once; of another, not before the last of its pods.
                waits = job["spec"].get("suspend") and not found
                await self._delete(JOBS, job, propagationPolicy="Background" if waits else "Foreground")
        live = [pod for pod in found if pod["status"].get("phase") not in ("Succeeded", "Failed")]
        # None is forced: only its node knows whether it is gone.
        seconds = max(1, math.ceil(grace))
        for pod in live:
            if _ends_in(pod) > seconds + _SOONER:
                await self._delete(PODS, pod, gracePeriodSeconds=seconds)

    async def logs(self, name: str) -> dict[int, LogEnd]:
        """The last 1 MiB of each rank's log, by rank. They lie in the store, where the ranks write them."""
        job, _, attempt = name.rpartition("-a")
        return await self._store.run(log_ends, self._store, live_logs(job, int(attempt)))

    async def remove(self, name: str, force: bool = False) -> bool:
        """Deletes what there is of an attempt that is over. False: it is not gone yet; call again.

        `force`: its pods are taken for dead, though their node does not say so.
        """
        job = await self._look_at(name)
        if job is not None and "deletionTimestamp" not in job["metadata"]:
            # It makes no pods any more, so that none can be left behind.
            await self._delete(JOBS, job, propagationPolicy="Background")
            self._deleted.add(name)
        left = self._pods.of(name)
        for pod in left:
            if force:
                await self._delete(PODS, pod, gracePeriodSeconds=0)
            elif _ends_in(pod) > 1 + _SOONER:
                await self._delete(PODS, pod, gracePeriodSeconds=1)
        if job is not None or left:
            return False
        self._looked -= {(name, True), (name, False)}
        if name in self._deleted:
            self._deleted.discard(name)
        else:
            # Whoever deleted it may have left what it owned.
            await asyncio.gather(*(self._delete_owned(kind, name) for kind in (SECRETS, SERVICES, NETWORK_POLICIES)))
        return True

    async def names(self) -> set[str]:
        """The names of all attempts of this installation that have a Job or pods."""
        if not (self._jobs.whole.is_set() and self._pods.whole.is_set()):
            raise ClusterError("the cluster has not answered yet")
        return self._jobs.keys() | self._pods.keys()

    async def _require_secrets(self, spec: JobSpec, project: str) -> None:
        """Raises Held where the store's Secret is missing, CannotStart where the spec's are not all its project's."""
        # With one sentence for those that are not there and for those of others: which there are is not told.
        store = self._site.bucket.secret if self._site.bucket is not None else ""
        if store and await self._api.get_metadata(SECRETS, store) is None:
            said = f"namespace {self._site.namespace} has no Secret {store}, which holds the store's credentials"
            raise Held(Reason.FORBIDDEN, f"{said}: an administrator makes it")
        for secret in sorted({secret for secret, _ in podspec.secrets(spec).values()}):
            found = await self._api.get_metadata(SECRETS, secret)
            if found is None or (found["metadata"].get("labels") or {}).get(labels.PROJECT) != project:
                said = (
                    f"resources.pod.secrets: namespace {self._site.namespace} has no Secret {secret} with the label "
                    f"{labels.PROJECT}={project}"
                )
                raise CannotStart(Reason.INVALID_SPEC, said)

    async def _create_job(self, name: str, wanted: Json) -> Json:
        known = self._job(name)
        same = known is not None and labels.fingerprint(known) == labels.fingerprint(wanted)
        if known is not None and same and "deletionTimestamp" not in known["metadata"]:
            return known
        try:
            made = await self._api.create(JOBS, wanted)
        except ApiError as error:
            if error.status != 409 or error.reason != "AlreadyExists":
                if error.status >= 500:
                    self._doubtful.add(name)
                raise
            there = await self._api.get(JOBS, name)
            if there is None or "deletionTimestamp" in there["metadata"]:
                raise ClusterError(f"the Job {name} is just being deleted") from None
            if labels.fingerprint(there) != labels.fingerprint(wanted):
                raise _conflict(there, self._site) from None
            made = there
        except ClusterError:
            self._doubtful.add(name)
            raise
        self._jobs.put(made)
        return made

    async def _create_owned(self, kind: Resource, wanted: Json, owner: str) -> None:
        try:
            await self._api.create(kind, wanted)
        except ApiError as error:
            if error.status != 409:
                raise
            name = wanted["metadata"]["name"]
            there = await self._api.get(kind, name)
            if there is None:
                # It was refused for something else.
                raise
            owners = there["metadata"].get("ownerReferences") or ()
            if owner not in [reference["uid"] for reference in owners]:
                if labels.attempt_of(there) == name and labels.ours(there, self._site):
                    raise ClusterError(f"the {there['kind']} {name} of an earlier Job is just being deleted") from None
                raise _conflict(there, self._site) from None

    async def _delete_owned(self, kind: Resource, name: str) -> None:
        there = await self._api.get(kind, name)
        if there is not None and labels.ours(there, self._site):
            await self._delete(kind, there)

    async def _look_at(self, name: str) -> Json | None:
        """Asks for an attempt's Job; None: there is none, or none of ours."""
        found = await self._api.get(JOBS, name)
        self._doubtful.discard(name)
        if found is None:
            self._jobs.forget(name)
            return None
        if not labels.ours(found, self._site):
            return None
        self._jobs.put(found)
        return found

    async def _delete(self, kind: Resource, item: Json, **options: Any) -> None:
        meta = item["metadata"]
        try:
            await self._api.delete(kind, meta["name"], {"preconditions": {"uid": meta["uid"]}, **options})
        except ApiError as error:
            if error.status in (401, 403):
                raise Held(Reason.FORBIDDEN, f"the API server refuses: {error.message}") from error
            raise

    def _job(self, name: str, uid: str | None = None) -> Json | None:
        """The attempt's Job: of several the one with this uid, or the youngest; never a copy under another name."""
        found = [job for job in self._jobs.of(name) if job["metadata"]["name"] == name]
        mine = [job for job in found if job["metadata"]["uid"] == uid]
        return max(mine or found, key=lambda job: job["metadata"]["creationTimestamp"], default=None)

    def _queue_says(self, job: Json | None) -> str | None:
        """What the queue says of a Job that waits in it, None: nothing yet; also has the queue followed from now on."""
        if job is None or not labels.queued(job):
            return ""
        if self._workloads not in self._tasks:
            self._follow(self._workloads)
        young = datetime.now(UTC) - datetime.fromisoformat(job["metadata"]["creationTimestamp"]) < _TAKES_NOTICE
        return waiting(self._workloads.of(job["metadata"]["uid"]), self._workloads.trouble, young=young)

    def _follow(self, informer: Informer) -> None:
        self._tasks[informer] = asyncio.create_task(informer.run())

    @contextlib.contextmanager
    def _refusals(self, name: str) -> Iterator[None]:
        """What the API server refuses for good, or for now, while an attempt's objects are created."""
        namespace = self._site.namespace
        try:
            yield
        except ApiError as error:
            if error.reason == "":
                raise  # a page of somebody in between, which says nothing of the cluster
            if "NamespaceTerminating" in error.causes:
                said = f"namespace {namespace} is being deleted: {error.message}"
                raise CannotStart(Reason.NAMESPACE_GONE, said) from error
            if error.status == 404 and "namespaces" in error.message:
                said = f"there is no namespace {namespace}: {error.message}"
                raise CannotStart(Reason.NAMESPACE_GONE, said) from error
            if error.status == 403 and "exceeded quota" in error.message:
                raise Held(Reason.QUOTA_WAIT, error.message) from error
            if error.status in (401, 403):
                said = f"the API server refuses: {error.message}"
                since = self._refused.setdefault(name, time.monotonic())
                if error.status == 401 or time.monotonic() - since < _PATIENCE:
                    raise Held(Reason.FORBIDDEN, said) from error
                raise CannotStart(Reason.FORBIDDEN, said) from error
            if error.status in (400, 413, 422):
                raise CannotStart(Reason.INVALID_SPEC, f"the API server refuses: {error.message}") from error
            raise
        self._refused.pop(name, None)

    def _hint(self, key: str) -> None:
        self._ended(key)


def _conflict(there: Json, site: Site) -> CannotStart:
    said = (
        f"{there['kind']} {there['metadata']['name']} in namespace {site.namespace} was not made by this control plane "
        "for this attempt; it was left alone: delete or rename it, then retry"
    )
    return CannotStart(Reason.NAME_CONFLICT, said)


def _began(pod: Json) -> bool:
    """Whether a container of the pod was ever started."""
    for status in pod["status"].get("containerStatuses") or ():
        if any(status.get(when, {}).get(how) for when in ("state", "lastState") for how in ("running", "terminated")):
            return True
    return pod["status"].get("phase") in ("Running", "Succeeded", "Failed")


def _ends_in(pod: Json) -> float:
    """Seconds until a pod is killed by its node; infinite where nobody asked it to end."""
    asked = pod["metadata"].get("deletionTimestamp")
    if asked is None:
        return math.inf
    return (datetime.fromisoformat(asked) - datetime.now(UTC)).total_seconds()
